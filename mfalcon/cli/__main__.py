"""`python -m mfalcon.cli`: the `mfalcon` command."""

from mfalcon.cli.main import main

main()
