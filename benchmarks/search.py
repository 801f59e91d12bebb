"""Indices of images against exact search: recall, queries a second, memory and time to build, by the number of vectors.

python benchmarks/search.py [--vectors 1000 100000 1000000] [--json]

Vectors are made, of width 512, to look like embeddings: the demo teacher's embeddings of 2,000 of the demo's images
(width 256) under a random orthogonal map, and around each one variations, by the difference of two others and by noise
in all directions. Queries of images are made in the same way and are among no vectors; queries of texts are around
embeddings of the captions, which lie apart from images. Exact search is a product of numpy in FP32 and a partition, for
one query as a command has it, and for 100 at once. All of it on one thread, in seconds of the processor. Memory is what
a process grows by that reads the graph. Each number of vectors is in a process of its own.

python benchmarks/search.py --growth 20000 200000 measures instead how far a process grows while so many different
images go through what decides which are new and writes their parts, without model, pixels and graph.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

WIDTH, QUERIES, TOP, IMAGES, BATCH = 512, 500, 10, 2000, 10_000
EFS = (32, 64, 128, 256, 512, 1024, 2048)


def embeddings(path: Path) -> None:
    """The demo teacher's embeddings of the demo's images and captions, as two arrays."""
    import numpy as np

    from mmcompress.data.batches import read
    from mmcompress.pipeline.converted import graphs_to_use
    from mmcompress.runtime.encoder import Encoder

    samples = [sample for sample, _ in zip(read("demo:train"), range(IMAGES), strict=False)]
    with Encoder.open(graphs_to_use("demo:teacher")) as encoder:
        images = [encoder.read_stored(sample.image, sample.key) for sample in samples]
        np.savez(path, images=encoder.as_read(images), texts=encoder.texts([one.captions[0] for one in samples]))


def measure(vectors: int, base: Path) -> dict[str, Any]:
    import numpy as np

    from mmcompress.runtime.neighbours import Graph
    from mmcompress.runtime.recall import walk_for

    held = np.load(base)
    turn = np.linalg.qr(np.random.default_rng(0).standard_normal((WIDTH, WIDTH)))[0].astype(np.float32)

    def like(side: str, count: int, seed: int) -> Any:
        """(count, 512) of unit norm, around embeddings of images or texts."""
        draw = np.random.default_rng(seed)
        centre, one, other = (draw.integers(0, IMAGES, count) for _ in range(3))
        images = held["images"]
        rows = np.zeros((count, WIDTH), np.float32)
        rows[:, : images.shape[1]] = held[side][centre] + 0.5 * (images[one] - images[other])
        rows += draw.standard_normal(rows.shape, np.float32) * np.float32(0.3 / WIDTH**0.5)
        rows = rows @ turn
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    rows = np.empty((vectors, WIDTH), np.float32)
    graph, building = Graph.empty(WIDTH), 0.0
    for start in range(0, vectors, BATCH):
        part = like("images", min(BATCH, vectors - start), 1 + start)
        rows[start : start + len(part)] = part
        began = time.process_time()
        graph.add(part)
        building += time.process_time() - began
    queries = {side: like(side, QUERIES, 0) for side in ("images", "texts")}

    def seconds(run: Callable[[Any], object], asked: Any, step: int) -> float:
        began = time.process_time()
        for start in range(0, len(asked), step):
            run(asked[start : start + step])
        return (time.process_time() - began) / len(asked)

    def exact(asked: Any) -> Any:
        return np.argpartition(-(asked @ rows.T), TOP, axis=1)[:, :TOP]

    best = {
        side: np.concatenate([exact(each[start : start + 50]) for start in range(0, QUERIES, 50)])
        for side, each in queries.items()
    }
    found: dict[str, Any] = {"vectors": vectors, "build_s": building, "efs": []}
    few = queries["images"][:100]
    exact(few[:1])
    found["exact_ms"], found["exact_of_100_ms"] = (1e3 * seconds(exact, few, step) for step in (1, 100))
    began = time.process_time()
    walk = walk_for(graph)
    found["chosen"] = {"ef": walk.candidates, "sample": walk.recall_at_10, "took_s": time.process_time() - began}
    for ef in dict.fromkeys((*EFS, walk.candidates)):
        row: dict[str, Any] = {"ef": ef}
        for side, asked in queries.items():
            took = [seconds(lambda q, ef=ef: graph.nearest(q, TOP, None, ef), asked, 1) for _ in range(3)]
            answers, _ = graph.nearest(asked, TOP, None, ef)
            shared = [len(set(a) & set(b)) for a, b in zip(answers.tolist(), best[side].tolist(), strict=True)]
            row[side] = {"ms": 1e3 * float(np.median(took)), "recall": float(np.mean(shared)) / TOP}
        row["exact_again_ms"] = 1e3 * seconds(exact, few, 1)
        found["efs"].append(row)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "graph"
        graph.write(path, nodes_beside(path))
        found["file_mb"] = path.stat().st_size / 1e6
        read = [sys.executable, __file__, "--read", str(path), str(vectors)]
        found["memory_mb"] = json.loads(subprocess.run(read, check=True, capture_output=True, text=True).stdout)
    return found


def nodes_beside(path: Path) -> Path:
    return path.with_suffix(".npy")


def memory_mb(path: Path, vectors: int) -> float:
    """What a process grows by that reads a graph."""
    import psutil

    from mmcompress.runtime.neighbours import Graph, faiss_module

    faiss_module()
    before = psutil.Process().memory_info().rss
    graph = Graph.read(path, nodes_beside(path), WIDTH, vectors)
    return (psutil.Process().memory_info().rss - before) / 1e6 if len(graph) else 0.0


def growth_mb(images: int) -> float:
    """What a process has grown by at most when so many images were embedded, but for model, pixels and graph."""
    import re

    import numpy as np

    from mmcompress.data.sample import Sample
    from mmcompress.runtime.growth import Growth

    class Model:
        prepares = False

        def read_stored(self, content: bytes, name: str) -> Any:
            return np.zeros((1, 1, 3), np.uint8)

        def as_read(self, pixels: Any, names: Any) -> Any:
            return np.ones((len(pixels), WIDTH), np.float32)

    def peak() -> float:
        found = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
        assert found is not None
        return int(found[1]) / 1000

    before = peak()
    with tempfile.TemporaryDirectory() as folder:
        growth = Growth(Model(), Path(folder), None)  # type: ignore[arg-type]
        for number in range(images):
            content = number.to_bytes(8, "big")
            growth.take(f"/somewhere/photos/of/many/{number:08d}.jpg", Sample(str(number), content, ("a",), None, True))
        growth.close()
    return peak() - before


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| vectors | build s | MB in memory | exact ms | exact, 100 at once, ms | ef | ms, images | times exact |"
        " recall@10, images | ms, texts | recall@10, texts |",
        "|--:" * 11 + "|",
    ]
    for row in rows:
        for at in row["efs"]:
            images, texts = at["images"], at["texts"]
            lines.append(
                f"| {row['vectors']:,} | {row['build_s']:.1f} | {row['memory_mb']:.0f} | {at['exact_again_ms']:.2f} |"
                f" {row['exact_of_100_ms']:.2f} | {at['ef']} | {images['ms']:.3f} |"
                f" {at['exact_again_ms'] / images['ms']:.1f} | {images['recall']:.4f} | {texts['ms']:.3f} |"
                f" {texts['recall']:.4f} |"
            )
    lines += [
        "",
        "| vectors | trying walks, s | ef chosen, 0: all looked at | recall@10 of its sample |",
        "|--:" * 4 + "|",
    ]
    for row in rows:
        chosen = row["chosen"]
        lines.append(f"| {row['vectors']:,} | {chosen['took_s']:.2f} | {chosen['ef']} | {chosen['sample']:.4f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vectors", type=int, nargs="+", default=[1000, 100_000, 1_000_000])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--growth", type=int, nargs="+")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--read", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.read:
        print(json.dumps(memory_mb(Path(given.read[0]), int(given.read[1]))))
        return
    if given.growth:
        if len(given.growth) == 1:
            print(f"| {given.growth[0]:,} | {growth_mb(given.growth[0]):.1f} |")
            return
        print("| images | MB grown |\n|--:|--:|", flush=True)
        for images in given.growth:
            subprocess.run([sys.executable, __file__, "--growth", str(images)], check=True)
        return
    if given.one:
        print(json.dumps(measure(int(given.one[0]), Path(given.one[1]))))
        return
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder) / "base.npz"
        embeddings(base)
        rows = []
        for vectors in given.vectors:
            command = [sys.executable, __file__, "--one", str(vectors), str(base)]
            alone = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
            rows.append(json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, env=alone).stdout))
            print(table(rows[-1:]), file=sys.stderr, flush=True)
    print(json.dumps(rows) if given.json else table(rows))


if __name__ == "__main__":
    main()
