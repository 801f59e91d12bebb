"""The program, and `python -m mmcompress`: Ctrl-C is no traceback while commands are imported, nor at the very end.

Within a command signals are caught by `interrupts.py`. Before it there is nothing to tidy up, and behind it neither.
"""

import signal
import sys


def main() -> None:
    """Import the commands and run the one that was asked for; ends with its exit code."""
    try:
        from mmcompress.cli.main import main as command

        command()
    except KeyboardInterrupt:
        sys.stderr.write("error: stopped by Ctrl-C\nhint: give the same command again\n")
        sys.exit(128 + signal.SIGINT)
    finally:
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, signal.SIG_DFL)


if __name__ == "__main__":  # processes that it starts import it too
    main()
