"""Kill the demo at random moments, run it again, and compare every artifact with an uninterrupted run.

python benchmarks/kill_demo.py [runs/demo] [--kills 10] [--seed 0] [--recipe demo]

Prints one row a kill and ends with exit code 1 if a digest differs (measurements apart) or a half artifact was seen.
"""

from __future__ import annotations

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from mmcompress.artifact import Artifact
from mmcompress.manifest import Kind


def artifacts(folder: Path) -> dict[str, Artifact]:
    """Every visible artifact, verified; a half one raises."""
    return {p.name: Artifact.open(p) for p in sorted(folder.iterdir()) if p.is_dir() and not p.name.startswith(".")}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("uninterrupted", type=Path, nargs="?", default=Path("runs/demo"))
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--recipe", default="demo")
    parser.add_argument("--longest", type=float, default=150.0, help="seconds that a run lives at most before its kill")
    asked = parser.parse_args()
    if not asked.uninterrupted.is_dir():
        print(f"skipped: there is no uninterrupted run in {asked.uninterrupted}; make demo first")
        return 0
    expected = {n: a.digest for n, a in artifacts(asked.uninterrupted).items() if a.manifest.kind is not Kind.REPORT}
    moments = random.Random(asked.seed)
    with tempfile.TemporaryDirectory() as temporary:
        out = Path(temporary) / "run"
        command = [sys.executable, "-m", "mmcompress", "run", asked.recipe, "--out", str(out)]
        for kill in range(asked.kills):
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            life = moments.uniform(1, asked.longest)
            time.sleep(life)
            process.send_signal(signal.SIGKILL)
            status = process.wait()
            whole = ", ".join(artifacts(out)) if out.exists() else ""
            print(f"kill {kill + 1:>2} after {life:5.1f} s (exit {status}): whole artifacts: {whole or 'none'}")
        start = time.monotonic()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        found = {n: a.digest for n, a in artifacts(out).items() if a.manifest.kind is not Kind.REPORT}
        print(f"then completed in {time.monotonic() - start:.0f} s")
    different = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    print(f"{len(expected)} artifacts compared, different: {', '.join(different) or 'none'}")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
