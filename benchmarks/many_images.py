"""Memory over very many images: `search` in a folder of them, `index` of a shard of them, and `classify` of each.

    python benchmarks/many_images.py [--images 100000] [--model ARTIFACT] [--commands search,index,classify]

The images are squares of noise, one in a hundred of them damaged; a folder has a hundred of them under as many names as
are asked for (hard links), a shard has every one once. Resident memory is read at a tenth of the images and at the
last one: it may grow by 1%. What is damaged has to be counted. The model is ONNX graphs, and where none is given that
of the tests. Prints a table in Markdown; exits with 1 where a bar is missed.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "worlds"))

import numpy as np
from every_command import write_world
from load import BAR, resident
from PIL import Image

from mmcompress.errors import CorruptInputError
from mmcompress.runtime.answers import classify, search
from mmcompress.runtime.encoder import Encoder
from mmcompress.runtime.indexing import index
from mmcompress.runtime.machine import cpu_model, usable_cores

SIDE, DAMAGED, NAMES_A_FOLDER = 16, 100, 1000
WORDS = "w1 w11"


def pictures(count: int) -> Iterator[bytes]:
    """PNG files of noise, the last of each hundred cut short."""
    noise = np.random.default_rng(0)
    for number in range(count):
        file = io.BytesIO()
        Image.fromarray(noise.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)).save(file, "PNG", compress_level=1)
        content = file.getvalue()
        yield content[: len(content) // 2] if number % DAMAGED == DAMAGED - 1 else content


def write_folder(folder: Path, count: int) -> Path:
    """A hundred pictures under many names."""
    few = []
    for number, content in enumerate(pictures(DAMAGED)):
        few.append(folder.with_name(f"{number:03d}.png"))
        few[-1].write_bytes(content)
    for number in range(count):
        place = folder / f"{number // NAMES_A_FOLDER:04d}" / f"{number:08d}.png"
        if number % NAMES_A_FOLDER == 0:
            place.parent.mkdir(parents=True)
        os.link(few[number % DAMAGED], place)
    return folder


def write_shard(path: Path, count: int) -> Path:
    """As many pictures, each another one, with a caption."""
    with tarfile.open(path, "w") as archive:
        for number, content in enumerate(pictures(count)):
            for suffix, said in (("png", content), ("txt", f"number {number}".encode())):
                info = tarfile.TarInfo(f"{number:08d}.{suffix}")
                info.size = len(said)
                archive.addfile(info, io.BytesIO(said))
    return path


class Watched:
    """Counts the images that an encoder reads, and notes what is resident at a tenth of them."""

    def __init__(self, encoder: Encoder, count: int) -> None:
        self.seen, self.before, self._at = 0, 0, count // 10
        for name in ("read", "read_stored"):
            setattr(encoder, name, self._counting(getattr(encoder, name)))

    def _counting(self, read: Callable[..., Any]) -> Callable[..., Any]:
        def instead(*given: Any) -> Any:
            self.seen += 1
            if self.seen == self._at:
                self.before = resident()
            return read(*given)

        return instead


def searched(encoder: Encoder, folder: Path, _: Path) -> int:
    """How many images it says are damaged."""
    with contextlib.redirect_stderr(io.StringIO()) as said:
        found = search(encoder, folder, WORDS)
    assert len(found) == 5
    words = " ".join(said.getvalue().split())
    return int(words.split(" items cannot be read")[0].split()[-3]) if "items cannot be read" in words else 0


def indexed(encoder: Encoder, _: Path, shard: Path) -> int:
    with contextlib.redirect_stderr(io.StringIO()):
        return index(encoder, str(shard), shard.with_name("index"), str(encoder.artifact.path)).damaged


def classified(encoder: Encoder, folder: Path, _: Path) -> int:
    damaged = 0
    for place in sorted(folder.rglob("*.png")):
        try:
            classify(encoder, place, ["w1", "w2"])
        except CorruptInputError:
            damaged += 1
            encoder.read_stored(next(pictures(1)), "none")  # so that every image is counted
    return damaged


COMMANDS = {"search": searched, "index": indexed, "classify": classified}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--commands", default=",".join(COMMANDS))
    asked = parser.parse_args()
    rows, missed = [], False
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model = asked.model or write_world(folder / "world") / "run" / "int8"
        images = write_folder(folder / "images", asked.images)
        shard = write_shard(folder / "shard-00000.tar", asked.images)
        for name in asked.commands.split(","):
            with Encoder.open(model, "onnxruntime", threads=1) as encoder:
                watched, begun = Watched(encoder, asked.images), time.process_time()
                damaged = COMMANDS[name](encoder, images, shard)
                after, seconds = resident(), time.process_time() - begun
            growth = after / watched.before - 1
            missed |= growth > BAR or damaged != asked.images // DAMAGED
            rows.append(
                f"| {name} | {asked.images:,} | {damaged:,} | {watched.before / 1e6:.1f} | {after / 1e6:.1f} |"
                f" {growth:+.2%} | {seconds / asked.images * 1e3:.2f} |"
            )
            print(rows[-1], file=sys.stderr)
    print(f"{cpu_model()}, {usable_cores()} cores; python benchmarks/many_images.py {' '.join(sys.argv[1:])}\n")
    print("| command | images | said to be damaged | MB at a tenth | MB after | growth | CPU ms an image |")
    print("|---|--:|--:|--:|--:|--:|--:|", *rows, sep="\n")
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
