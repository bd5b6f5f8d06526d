"""The most common passwords, in lower case, from a list in the package zxcvbn.

Only the file with the lists is loaded: the package itself builds tables that nothing here needs.
"""

import importlib.util
from functools import cache
from pathlib import Path

from account_service.model import MIN_PASSWORD_BYTES


@cache
def common_passwords() -> frozenset[str]:
    """Return the passwords that are refused. Those that are too short for any account are left out."""
    package = importlib.util.find_spec("zxcvbn")
    assert package is not None
    assert package.origin is not None
    file = Path(package.origin).with_name("frequency_lists.py")
    found = importlib.util.spec_from_file_location("account_service._frequency_lists", file)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return frozenset(word.lower() for word in module.FREQUENCY_LISTS["passwords"] if len(word) >= MIN_PASSWORD_BYTES)
