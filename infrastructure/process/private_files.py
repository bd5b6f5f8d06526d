"""Directories and files that only their owner may read: state, personal data, secrets."""

import os
from pathlib import Path
from typing import Final

_DIRECTORY_MODE: Final = 0o700
_FILE_MODE: Final = 0o600


def create_private_directory(folder: Path) -> None:
    """Create a directory and its missing parents, for this user only. An existing directory stays as it is."""
    for missing in reversed([each for each in (folder, *folder.parents) if not each.exists()]):
        missing.mkdir(mode=_DIRECTORY_MODE, exist_ok=True)


def create_private_file(file: Path) -> None:
    """Create an empty file that only this user may read, unless it exists; its directory is created too."""
    create_private_directory(file.parent)
    os.close(os.open(file, os.O_WRONLY | os.O_CREAT, _FILE_MODE))


def write_private_file(file: Path, text: str) -> None:
    """Write a file atomically; other users cannot read it at any moment."""
    create_private_directory(file.parent)
    new = file.with_name(f"{file.name}.{os.getpid()}.new")
    new.unlink(missing_ok=True)
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _FILE_MODE), "w", encoding="utf-8") as out:
        out.write(text)
    new.replace(file)
