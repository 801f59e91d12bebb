"""The commands. Each parses, calls one function and prints; heavy imports stay inside the commands.

Nothing here names a key of a config: `keyed` makes an option of every key of the stage that a command runs, and hands
over what was said as `given`. `--help` lists the commands in the order in which they are imported here.
"""

from mmcompress.cli.commands import compress, measure, use, remote, data  # isort: skip
from mmcompress.cli.commands.app import app

__all__ = ["app", "compress", "data", "measure", "remote", "use"]
