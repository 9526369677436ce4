"""`python -m nextile` is the command."""

from nextile.cli.main import main

main()
