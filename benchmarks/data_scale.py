"""What comes before the first step, against the number of pairs: each row in processes of its own.

python benchmarks/data_scale.py [--pairs 1000 20000 200000] [--a-shard 10000] [--json]

Pairs are JPEGs of 32 pixels with a sentence, so that what is measured is everything but pixels. `first` is a machine
that has not seen the data: nothing in the cache folder. `again` is a rerun. Times are of one run each, in seconds of
the processor, without the start of Python, files in the page cache; the last column is one more shard in the folder.
The functions are older than the index, so an earlier commit can be measured by the same file.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

STEPS = {
    "fingerprint": "fingerprint(spec)",
    "count": "count(spec)",
    "first batch": "next(iter(batches(spec, P, batch=64, shuffle_seed=0, drop_last=True)))",
    "batch at 90%": "next(iter(batches(spec, P, batch=64, shuffle_seed=0, drop_last=True, skip=skip)))",
}
PROGRAM = """
import json, sys, time
from mmcompress.data.batches import batches, count, fingerprint
from mmcompress.manifest import Preprocessing
spec, skip, steps = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])
P = Preprocessing(size=32, resize=32, mean=(0.5,) * 3, std=(0.5,) * 3)
for step in steps:
    start = time.process_time()
    eval(step)
    print(time.process_time() - start)
"""


def write_shard(path: Path, number: int, pairs: int) -> None:
    """A tar as webdataset's writer makes it."""
    noise = np.random.default_rng(number)
    images = []
    for _ in range(64):
        buffer = io.BytesIO()
        Image.fromarray(noise.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(buffer, "JPEG")
        images.append(buffer.getvalue())
    with tarfile.open(path, "w") as archive:
        for n in range(pairs):
            caption = f"a sentence of some words about picture {n} of shard {number}".encode()
            for suffix, content in (("jpg", images[n % 64]), ("txt", caption)):
                info = tarfile.TarInfo(f"{n:08d}.{suffix}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))


def seconds(data: Path, cache: Path, pairs: int, *steps: str) -> list[float]:
    """The times of some steps one after the other, in a fresh process."""
    asked = [str(data), str(int(0.9 * pairs / 64)), json.dumps([STEPS[step] for step in steps])]
    environment = {**os.environ, "MMCOMPRESS_CACHE": str(cache)}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *asked], env=environment, check=True, stdout=subprocess.PIPE, text=True
    )
    return [float(line) for line in done.stdout.split()]


def row(folder: Path, pairs: int, a_shard: int) -> dict[str, float]:
    """All figures of one size."""
    data, cache = folder / f"data-{pairs}", folder / f"cache-{pairs}"
    data.mkdir()
    shards = max(1, pairs // a_shard)
    for number in range(shards):
        write_shard(data / f"{number:05d}.tar", number, pairs // shards)
    first = seconds(data, cache, pairs, "fingerprint", "count", "first batch")
    again = {name: seconds(data, cache, pairs, name)[0] for name in STEPS}
    write_shard(data / f"{shards:05d}.tar", shards, pairs // shards)
    grown = seconds(data, cache, pairs, "fingerprint", "count")
    return {
        "pairs": pairs,
        "shards": shards,
        "MB": sum(path.stat().st_size for path in data.iterdir()) / 1e6,
        "first: fingerprint": first[0],
        "first: count": first[1],
        "first: batch": first[2],
        "again: fingerprint": again["fingerprint"],
        "again: count": again["count"],
        "again: batch": again["first batch"],
        "again: batch at 90%": again["batch at 90%"],
        "a shard more": sum(grown),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, nargs="+", default=[1000, 20_000, 200_000])
    parser.add_argument("--a-shard", type=int, default=10_000)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = [row(Path(folder), pairs, asked.a_shard) for pairs in asked.pairs]
    if asked.json:
        print(json.dumps(rows))
        return 0
    print("| " + " | ".join(rows[0]) + " |")
    print("|" + "--:|" * len(rows[0]))
    for figures in rows:
        print("| " + " | ".join(f"{v:,}" if isinstance(v, int) else f"{v:.2f}" for v in figures.values()) + " |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
