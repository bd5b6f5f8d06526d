"""Entry point of `python -m infrastructure.local`: the `holdfast` command without a script on the PATH."""

from infrastructure.local.cli import main

main()
