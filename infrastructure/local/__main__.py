"""`python -m infrastructure.local`: the same as the `holdfast` script, found without a PATH."""

from infrastructure.local.cli import main

main()
