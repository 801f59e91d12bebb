"""`~` in the paths that a user writes: the home folder where there is one, and no exception where there is none.

`Path.expanduser` raises RuntimeError for a user who does not exist, and in a container that runs under a number without
a name and without HOME. Such a path stays as it is written: there is no folder of that name, and whoever looks for it
says so. Who would make it asks `is_known` first.
"""

from __future__ import annotations

import os
from pathlib import Path


def expanded(path: str | Path) -> Path:
    """The path with `~` and `~user` replaced; as it is where nobody knows that home."""
    return Path(os.path.expanduser(path))  # noqa: PTH111, pathlib's raises


def is_known(path: str) -> bool:
    """Whether a path begins with no `~`, or with that of a home that is known."""
    return not os.path.expanduser(path).startswith("~")  # noqa: PTH111
