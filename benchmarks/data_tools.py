"""Peak memory and time of `data pack`, `stats`, `dedupe` and `filter`, against the number of pairs.

python benchmarks/data_tools.py [--pairs 5000 50000] [--json]

Pairs are PNGs of 8 pixels, all different, with a sentence, in one folder and in a table; embeddings are random, of
width 512, with 1% near duplicates, so that what is measured is everything but a teacher. Each command is a process of
its own. Memory is its VmHWM, so it has Python, numpy and, for `dedupe` and `filter`, torch in it; mapped files count
while their pages are in memory. Times are of the processor, with the start of Python, one run each.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

PROGRAM = """
import re, sys
from pathlib import Path
from mmcompress.cli.main import _command
sys.argv = ["mmcompress", *sys.argv[1:]]
code = _command()
print(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1], file=sys.stderr)
sys.exit(code)
"""
WIDTH = 512


def write_loose(folder: Path, pairs: int) -> Path:
    """Images with captions beside them, and a table of the same."""
    import io

    import numpy as np
    from PIL import Image

    draw = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    with (folder / "pairs.csv").open("w") as table:
        table.write("image,caption\n")
        for number in range(pairs):
            buffer = io.BytesIO()
            Image.fromarray(draw.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(buffer, "PNG")
            (folder / "images" / f"{number:08d}.png").write_bytes(buffer.getvalue())
            (folder / "images" / f"{number:08d}.txt").write_text(f"a sentence of some words about picture {number}")
            table.write(f"images/{number:08d}.png,a sentence of some words about picture {number}\n")
    return folder


def write_embeddings(spec: Path, place: Path) -> None:
    """Random ones, as `embed` lays them out."""
    import itertools

    import torch

    from mmcompress.artifact import Artifact
    from mmcompress.compress.train.chunks import CONTENTS, FOLDER, Contents, Shard, chunk_file, write_chunk
    from mmcompress.data.batches import listing
    from mmcompress.manifest import Kind

    torch.manual_seed(0)
    with Artifact.create(place, kind=Kind.EMBEDDINGS, stage="embed", key="") as draft:
        (draft.path / FOLDER).mkdir()
        shards = []
        stream = listing(str(spec))
        for name, items in itertools.groupby(stream, key=lambda item: item.key.partition("/")[0]):
            sizes = []
            while some := list(itertools.islice(items, 2048)):
                images = torch.nn.functional.normalize(torch.randn(len(some), WIDTH), dim=1)
                images[1::100] = images[: len(images[1::100]) * 100 : 100][: len(images[1::100])]
                marks, keys = [item.mark for item in some], [item.key for item in some]
                path = draft.path / chunk_file(name, len(sizes))
                write_chunk(path, images[:, None].half(), images.half(), [1] * len(some), marks, keys)
                sizes.append(len(some))
            shards.append(Shard(name=name, key=name, samples=tuple(sizes), captions=tuple(sizes)))
        (draft.path / CONTENTS).write_text(Contents(shards=tuple(shards)).model_dump_json())


def row(folder: Path, pairs: int) -> dict[str, float]:
    """MB and seconds of each command."""
    write_loose(folder, pairs)
    found: dict[str, float] = {"pairs": pairs}
    shards, cached, names = str(folder / "shards"), str(folder / "e"), str(folder / "list.tsv")
    commands = {
        "pack of a folder": ["pack", str(folder / "images"), "--out", shards],
        "pack of a table": ["pack", str(folder / "pairs.csv"), "--out", str(folder / "shards-of-table")],
        "stats": ["stats", shards],
        "dedupe": ["dedupe", shards, "--embeddings", cached, "--out", names],
        "filter": ["filter", shards, "--embeddings", cached, "--min-similarity", "0.5", "--exclude", names],
    }
    commands["filter"] += ["--out", str(folder / "clean")]
    for name, command in commands.items():
        if name == "dedupe":
            write_embeddings(Path(shards), Path(cached))
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, "data", *command], check=True, capture_output=True, text=True
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        found[f"{name}, MB"] = int(done.stderr.split()[-1]) / 1000
        found[f"{name}, s"] = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, nargs="+", default=[5000, 50_000])
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    rows = []
    for pairs in given.pairs:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(row(Path(folder), pairs))
    if given.json:
        print(json.dumps(rows))
        return
    print("| " + " | ".join(rows[0]) + " |")
    print("|" + "--:|" * len(rows[0]))
    for figures in rows:
        print("| " + " | ".join(f"{v:,}" if isinstance(v, int) else f"{v:.1f}" for v in figures.values()) + " |")


if __name__ == "__main__":
    main()
