"""Peak memory of `mmcompress quantize` against the number of samples: each run in a process of its own.

python benchmarks/calibration_memory.py [CHECKPOINT] [--data SHARDS] [--samples 400 4000]

Measured is the largest resident set that the system recorded of the process. Samples that there are not enough of
would be a false comparison, so the data must hold the largest number.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from mmcompress.data.batches import count

DATA = Path("../shared/data/flickr8k-160")


def peak_mib(checkpoint: Path, data: str, samples: int, out: Path) -> float:
    """Run the command in a child of a fresh process, which knows the peak of its only child."""
    command = ["quantize", str(checkpoint), "--data", data, "--out", str(out), "--set", f"samples={samples}"]
    program = (
        "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, stdout=sys.stderr); "
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    ran = [sys.executable, "-c", program, sys.executable, "-m", "mmcompress", *command]
    done = subprocess.run(ran, check=True, stdout=subprocess.PIPE, text=True)
    return int(done.stdout) / (1 << 20 if sys.platform == "darwin" else 1 << 10)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, nargs="?", default=Path("runs/demo/recover"))
    parser.add_argument("--data", default=str(DATA / "train-{00000..00005}.tar") if DATA.is_dir() else "demo:train")
    parser.add_argument("--samples", type=int, nargs="+", default=[400, 4000])
    asked = parser.parse_args()
    if not asked.checkpoint.is_dir():
        print(f"not measured: there is no {asked.checkpoint}; run `make demo`, or give a checkpoint")
        return 0
    held = count(asked.data)
    if held < max(asked.samples):
        print(f"not measured: {asked.data} has {held} samples, and {max(asked.samples)} are asked for")
        return 0
    print(f"{'samples':>8} {'peak MiB':>9} {'ratio':>6}")
    first = 0.0
    with tempfile.TemporaryDirectory() as folder:
        for samples in asked.samples:
            peak = peak_mib(asked.checkpoint, asked.data, samples, Path(folder) / str(samples))
            first = first or peak
            print(f"{samples:8d} {peak:9.0f} {peak / first:6.3f}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
