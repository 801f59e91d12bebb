"""What ships with the package, as `demo:NAME`: shards, names and a teacher."""

from __future__ import annotations

import importlib.resources
from pathlib import Path

from mmcompress.errors import UsageError, suggestion

PACKAGED = {
    "train": "train-*.tar",
    "val": "val-*.tar",
    "test": "test-*.tar",
    "names": "names.txt",
    "names-zh": "names-zh.txt",
    "teacher": "teacher",
}


def packaged(spec: str) -> Path:
    """Where `demo:NAME` lies in the package: a file, a folder, or a pattern of shards."""
    name = spec.removeprefix("demo:")
    if name == spec or name not in PACKAGED:
        raise UsageError(f"nothing that ships with mmcompress is called {spec!r}", suggestion(name, PACKAGED))
    return Path(str(importlib.resources.files("mmcompress.demo"))) / PACKAGED[name]
