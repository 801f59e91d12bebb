"""Commands of mmcompress in several processes, as `torchrun` starts them, with Gloo on this machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

_PATHS = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "PYTHONPATH": _PATHS}


def command(*arguments: object, restarts: int = 0, script: Path | None = None) -> list[str]:
    """`torchrun --nproc_per_node 2 -m mmcompress ARGUMENTS`, or a script in its place."""
    what = ["-m", "mmcompress"] if script is None else [str(script)]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "--max-restarts", str(restarts)]
    return [sys.executable, *launcher, *what, *map(str, arguments)]


def torchrun(*arguments: object, script: Path | None = None) -> subprocess.CompletedProcess[str]:
    """How it ended. One that hangs is an error after four minutes."""
    return subprocess.run(
        command(*arguments, script=script), capture_output=True, text=True, timeout=240, env=ENVIRONMENT
    )
