"""The input pipeline against bare decoding of the same bytes, in as many threads, and where its time goes.

python benchmarks/input_pipeline.py [SPEC] [--size 224] [--threads 2] [--rounds 5] [--samples 320] [--json]

`bare` opens, decodes and resizes each image with Pillow as the model wants it (the shorter side becomes --size,
bicubic), from memory, and throws the pixels away. Everything else comes from the shards (by their indices, files in the
page cache) and ends as normalized batches in torch: plain images, one augmented view of each as training reads them,
and four views as `embed --views 4` does. One round runs all of them, one after the other; a ratio is of one round, and
the table has the median and the range of the rounds. `CPU ms` is of the processor, over all threads, so other work on
the machine disturbs it little; `images/s` is of the clock. A GPU was never there: batches are normalized on the CPU, by
one thread, while the others decode.
"""

from __future__ import annotations

import argparse
import io
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import numpy as np
import torch
from PIL import Image

from mmcompress.compress.train.augment import decoded_views, normalized, pixels_of_views
from mmcompress.data.batches import batches, listing
from mmcompress.data.preprocess import plain_view, resized_size, to_rgb, upright
from mmcompress.data.views import crop_box, enough, photo_view, uniforms
from mmcompress.manifest import Preprocessing

CPU = torch.device("cpu")
BATCH = 32
CLIP = ((0.481, 0.458, 0.408), (0.269, 0.261, 0.276))


def bare(images: list[bytes], size: int, threads: int, draft: bool) -> int:
    """Decode and resize, and nothing else."""

    def one(image: bytes) -> None:
        with Image.open(io.BytesIO(image)) as opened:
            if draft:
                opened.draft("RGB", (size, size))
            rgb = opened.convert("RGB")
            rgb.resize(resized_size(*rgb.size, size), Image.Resampling.BICUBIC)

    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(one, images):
            pass
    return len(images)


def pipeline(spec: str, rule: Preprocessing, threads: int, samples: int, views: tuple[int, ...]) -> int:
    """Shards to normalized batches, a tensor for each view."""
    shown = decoded_views("photo", 0, len(views), lambda _: views)
    found, last = 0, -(-samples // BATCH)
    # Threads decode ahead, so a stream that is left early has done more than was taken of it.
    for batch in batches(spec, rule, batch=BATCH, workers=threads, shown=shown, only=lambda number: number < last):
        for view in views:
            same = np.full(len(batch.keys), view)
            normalized(pixels_of_views(batch, same, 0, "photo", CPU), rule)
        found += len(batch.keys)
    return found


def parts(spec: str, rule: Preprocessing, samples: int) -> dict[str, float]:
    """CPU ms an image of each step of one augmented view, one after the other in one thread."""
    listed = list(islice(listing(spec), samples))
    spent: dict[str, float] = dict.fromkeys(("read", "decode", "numbers", "crop", "whole view", "plain view"), 0.0)

    def timed(name: str, step: Callable[[], object]) -> object:
        start = time.process_time()
        result = step()
        spent[name] += time.process_time() - start
        return result

    def decoded(image: bytes) -> Image.Image:
        opened = Image.open(io.BytesIO(image))
        opened.draft("RGB", enough(*opened.size, rule))
        return to_rgb(upright(opened))

    for sample in listed:
        image: bytes = timed("read", sample.stored)  # type: ignore[assignment]
        rgb: Image.Image = timed("decode", lambda: decoded(image))  # type: ignore[assignment]  # noqa: B023
        u = timed("numbers", lambda: uniforms(0, np.array([1]), [sample.key])[0])  # noqa: B023
        box = crop_box(u, *rgb.size)  # type: ignore[arg-type]
        timed("crop", lambda: rgb.resize((rule.size, rule.size), Image.Resampling.BICUBIC, box))  # noqa: B023
        timed("whole view", lambda: photo_view(rgb, rule, u))  # type: ignore[arg-type]  # noqa: B023
        timed("plain view", lambda: plain_view(rgb, rule))  # noqa: B023
    pixels = np.zeros((BATCH, rule.size, rule.size, 3), np.uint8)
    start = time.process_time()
    for _ in range(10):
        normalized(torch.from_numpy(pixels).permute(0, 3, 1, 2), rule)
    spent["normalize"] = (time.process_time() - start) / 10 / BATCH * len(listed)
    return {name: 1000 * seconds / len(listed) for name, seconds in spent.items()}


def measured(run: Callable[[], int]) -> tuple[float, float]:
    """(CPU ms an image, images a second by the clock)."""
    cpu, clock = time.process_time(), time.perf_counter()
    images = run()
    return 1000 * (time.process_time() - cpu) / images, images / (time.perf_counter() - clock)


def rounds(spec: str, size: int, threads: int, samples: int, number: int) -> Iterator[dict[str, tuple[float, float]]]:
    rule = Preprocessing(size=size, resize=size, mean=CLIP[0], std=CLIP[1])
    images = [sample.stored() for sample in islice(listing(spec), samples)]
    ways: dict[str, Callable[[], int]] = {
        "bare": lambda: bare(images, size, threads, draft=False),
        "bare, JPEG draft": lambda: bare(images, size, threads, draft=True),
        "plain images": lambda: pipeline(spec, rule, threads, samples, (0,)),
        "one view": lambda: pipeline(spec, rule, threads, samples, (1,)),
        "four views": lambda: pipeline(spec, rule, threads, samples, (0, 1, 2, 3)),
    }
    for run in ways.values():  # indices are made, files are cached
        run()
    for _ in range(number):
        yield {name: measured(run) for name, run in ways.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("spec", nargs="?", default="demo:train")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--samples", type=int, default=320)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    found = list(rounds(asked.spec, asked.size, asked.threads, asked.samples, asked.rounds))
    rule = Preprocessing(size=asked.size, resize=asked.size, mean=CLIP[0], std=CLIP[1])
    steps = parts(asked.spec, rule, min(asked.samples, 160))
    if asked.json:
        print(json.dumps({"rounds": found, "steps": steps, "machine": platform.processor()}))
        return 0
    print("| | CPU ms an image | of bare, CPU | images/s | of bare, clock |\n|---|--:|--:|--:|--:|")
    for name in found[0]:
        cpu, clock = zip(*(one[name] for one in found), strict=True)
        of_cpu = [one["bare"][0] / one[name][0] for one in found]
        of_clock = [one[name][1] / one["bare"][1] for one in found]
        print(f"| {name} | {middle(cpu)} | {middle(of_cpu)} | {middle(clock)} | {middle(of_clock)} |")
    print("\nOne view, step by step, CPU ms an image: " + ", ".join(f"{name} {ms:.2f}" for name, ms in steps.items()))
    return 0


def middle(values: list[float] | tuple[float, ...]) -> str:
    """The median, and the range."""
    digits = 0 if max(values) > 50 else 2
    low, median, high = (f"{value:.{digits}f}" for value in (min(values), statistics.median(values), max(values)))
    return f"{median} ({low} to {high})"


if __name__ == "__main__":
    sys.exit(main())
