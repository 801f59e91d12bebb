"""`python -m mmcompress`."""

from mmcompress.cli.main import main

if __name__ == "__main__":  # processes that it starts import it too
    main()
