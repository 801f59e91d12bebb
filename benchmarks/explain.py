"""Do maps point at what is named? Composed images: drawings of demo:val on the quarters of a white image.

    python benchmarks/explain.py [MODEL ...]      # demo:teacher alone if none is given

Prints a table in Markdown: each model, both methods, with one drawing an image and with four.
"""

from __future__ import annotations

import io
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from mmcompress.data.batches import read
from mmcompress.formats import percent, percent_interval
from mmcompress.pipeline.explaining import pointing

SIDE, IMAGES = 128, 200


def compose(folder: Path, drawings: int) -> Path:
    """IMAGES images with so many drawings each, and the table of the one that is named."""
    samples = list(read("demo:val", max_bad_fraction=0, announce=False))
    generator = np.random.default_rng(0)
    folder.mkdir()
    lines = ["image\ttext\tleft\ttop\tright\tbottom"]
    for number in range(IMAGES):
        image = Image.new("RGB", (SIDE, SIDE), "white")
        quarters = generator.permutation(4)[:drawings]
        chosen = generator.choice(len(samples), drawings, replace=False)
        for quarter, index in zip(quarters, chosen, strict=True):
            with Image.open(io.BytesIO(samples[index].image)) as drawing:
                place = (int(quarter % 2) * SIDE // 2, int(quarter // 2) * SIDE // 2)
                image.paste(drawing.convert("RGB").resize((SIDE // 2, SIDE // 2), Image.Resampling.BICUBIC), place)
        left, top = int(quarters[0] % 2) * SIDE // 2, int(quarters[0] // 2) * SIDE // 2
        image.save(folder / f"{number:03d}.png")
        box = "\t".join(map(str, (left, top, left + SIDE // 2, top + SIDE // 2)))
        lines.append(f"{number:03d}.png\t{samples[chosen[0]].captions[0]}\t{box}")
    (folder / "boxes.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / "boxes.tsv"


def main() -> None:
    models = sys.argv[1:] or ["demo:teacher"]
    print(f"| model | method | drawings an image | right quarter of {IMAGES} | 95% | chance |")
    print("|---|---|--:|--:|--:|--:|")
    with tempfile.TemporaryDirectory() as work:
        for drawings in (1, 4):
            boxes = compose(Path(work) / str(drawings), drawings)
            for method in ("relevance", "occlusion"):
                for one in pointing(models, boxes, method, None)[1]:
                    shares = f"{percent(one.hits)} | {percent_interval(one.interval)} | {percent(one.chance)}"
                    print(f"| {one.name} | {method} | {drawings} | {shares} |", flush=True)


if __name__ == "__main__":
    main()
