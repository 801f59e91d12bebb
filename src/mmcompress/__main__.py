"""`python -m mmcompress`."""

from mmcompress.cli import main

main()
