"""`python -m mmcompress`."""

from mmcompress.cli.commands import main

main()
