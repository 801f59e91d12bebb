"""Answers of the page in headless Chromium against those of `classify` on ONNX Runtime, on the same INT8 graphs.

    python benchmarks/browser.py [ARTIFACT] [--beside TEACHER] [--images 100] [--labels 20]

ARTIFACT is `runs/demo/int8` if not given. Images are the first of demo:test, candidates their own names. Prints a table
in Markdown: how many first labels agree, the largest difference of a share, the median time of a tower and of preparing
an image, and the site's size. Needs chromium on the PATH.
"""

from __future__ import annotations

import argparse
import base64
import json
import statistics
import sys
import tempfile
from itertools import islice
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "worlds"))

import browser
from site_folder import served

from mmcompress.data.batches import read
from mmcompress.formats import megabytes
from mmcompress.pipeline import standalone
from mmcompress.runtime import answers
from mmcompress.runtime.encoder import Encoder


def in_browser(page: browser.Page, image: bytes, labels: list[str]) -> list[dict[str, Any]]:
    blob = f"new Blob([Uint8Array.from(atob('{base64.b64encode(image).decode()}'), (c) => c.charCodeAt(0))])"
    ask = f"models.classified(app.ask, app.description.models, {blob}, {json.dumps(labels)}, '{{}}')"
    found: list[dict[str, Any]] = page.evaluate(
        f"Promise.all([import('./app.js'), import('./models.js')]).then(([app, models]) => {ask})"
    )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", nargs="?", default="runs/demo/int8")
    parser.add_argument("--beside")
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--labels", type=int, default=20)
    asked = parser.parse_args()
    samples = list(islice(read("demo:test", announce=False), max(asked.images, asked.labels)))
    labels = list(dict.fromkeys(sample.captions[0] for sample in samples))[: asked.labels]
    named = [name for name in (asked.artifact, asked.beside) if name is not None]
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        site = standalone.page(asked.artifact, asked.beside, folder / "site", {"data.test": "demo:test"})
        with served(site.path) as address, browser.opened(folder / "profile") as page:
            page.load(address)
            answered = [in_browser(page, sample.image, labels) for sample in samples[: asked.images]]
        heads = ("model", "same first label", "largest difference of a share", "image tower, ms", "preparing, ms")
        print("| " + " | ".join((*heads, "a text, ms")) + " |")
        print("|---|--:|--:|--:|--:|--:|")
        for at, name in enumerate(named):
            same, worst = 0, 0.0
            with Encoder.open(name, "onnxruntime") as encoder:
                for sample, found in zip(samples, answered, strict=False):
                    path = folder / "image"
                    path.write_bytes(sample.image)
                    expected = answers.classify(encoder, path, labels)
                    shares = {one["label"]: one["share"] for one in found[at]["shares"]}
                    same += found[at]["shares"][0]["label"] == expected[0][0]
                    worst = max(worst, *(abs(shares[label] - share) for label, share in expected))
            times = [statistics.median(one[at][key] for one in answered) for key in ("image_ms", "prepare_ms")]
            text = answered[0][at]["text_ms"]
            agreed = f"{Path(name).name} | {same} of {asked.images} | {worst:.5f}"
            print(f"| {agreed} | {times[0]:.1f} | {times[1]:.2f} | {text:.1f} |")
        print(f"\n{len(labels)} labels; the site has {megabytes(site.manifest.facts['bytes'])}.")


if __name__ == "__main__":
    main()
