"""What drift and bisect claim, measured in one run: equality with CLIP_benchmark, time and memory, and the right name.

python benchmarks/drift_claims.py [--run runs/demo] [--clip-benchmark FOLDER] [--tries 10]

Three claims. The figures equal CLIP_benchmark's own functions, which are loaded from its source where FOLDER holds the
unpacked package (`pip download --no-deps clip-benchmark`, unzip), one function at a time, since its modules import much
else; whole numbers as embeddings make most scores ties. Drift of 100,000 embeddings of width 512 ends in 30 s within
2 GB, with every interval; a process of its own measures it. A layer of a finished run's INT8 model that was scaled
wrongly is the first that bisect names, in either tower.
"""

from __future__ import annotations

import argparse
import ast
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mmcompress.artifact import Artifact
from mmcompress.config import BisectConfig, DataConfig

WIDTH = 512
KINDS = ("range x0.25", "range x8", "weights x1.3", "range shifted")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/demo"), help="a finished run with `quantize` and `int8`")
    parser.add_argument("--clip-benchmark", type=Path, help="folder that holds clip_benchmark/metrics")
    parser.add_argument("--tries", type=int, default=10)
    parser.add_argument("--measure", nargs=2, type=int, metavar=("IMAGES", "TEXTS"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.measure:
        return measure(*asked.measure)
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    rows = [
        *equality(asked.clip_benchmark),
        timed("100,000 images, 1,000 classes", 100_000, 1_000),
        timed("100,000 captions of 2,000 images", 2_000, 100_000),
        *named(asked.run, asked.tries),
    ]
    print(f"| {'what':<40} | {'measured':<52} | {'bar':<18} | met |\n|{'-' * 42}|{'-' * 54}|{'-' * 20}|-----|")
    for what, found, bar, met in rows:
        print(f"| {what:<40} | {found:<52} | {bar:<18} | {'-' if met is None else 'yes' if met else 'NO':<3} |")
    return 0 if all(met is not False for *_, met in rows) else 1


Claim = tuple[str, str, str, "bool | None"]


def equality(package: Path | None) -> list[Claim]:
    """The largest difference from CLIP_benchmark's functions over random whole numbers and random unit vectors."""
    bar = "1e-6, ties included"
    if package is None:
        return [("retrieval and zero-shot", "not measured: --clip-benchmark is not given", bar, None)]
    from mmcompress.measure.retrieval import classification, retrieval

    recall_at_k, accuracy = theirs(package, "zeroshot_retrieval"), theirs(package, "zeroshot_classification")
    worst, cases = 0.0, 0
    for seed in range(24):
        rng = np.random.default_rng(seed)
        images, captions = int(rng.choice([12, 60, 300, 800])), int(rng.choice([1, 2, 5]))
        draw = _whole_numbers if seed % 2 else _unit_vectors
        owner = rng.permutation(np.repeat(np.arange(images), captions))
        pictures, texts = draw(rng, images), draw(rng, images * captions)
        found = retrieval(pictures, texts, owner)
        worst = max(worst, *(abs(found[name] - value) for name, value in recall_at_k(pictures, texts, owner).items()))
        labels = rng.integers(0, len(texts), images)
        found = classification(pictures, texts, labels)
        expected = accuracy(pictures, texts, labels)
        worst = max(worst, *(abs(found[name] - value) for name, value in expected.items()))
        cases += 2
    return [("retrieval and zero-shot", f"largest difference {worst:.1e} in {cases} sets", bar, worst <= 1e-6)]


def _whole_numbers(rng: np.random.Generator, rows: int) -> np.ndarray[Any, Any]:
    return rng.integers(-3, 4, (rows, 4)).astype(np.float32)


def _unit_vectors(rng: np.random.Generator, rows: int) -> np.ndarray[Any, Any]:
    """Every tenth occurs twice, as captions do."""
    vectors = rng.standard_normal((rows, 64)).astype(np.float32)
    vectors[9::10] = vectors[:-1][: len(vectors[9::10])]
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def theirs(package: Path, module: str) -> Callable[..., dict[str, float]]:
    """CLIP_benchmark's own function out of its source, with the lines around it that its `evaluate` has."""
    import torch

    source = (package / "clip_benchmark" / "metrics" / f"{module}.py").read_text(encoding="utf-8")
    source = source.replace(".cpu().numpy())", ".item())")  # numpy 2.4 no longer makes a float of an array of one
    wanted = {"recall_at_k", "batchify", "accuracy"}
    functions = [n for n in ast.parse(source).body if isinstance(n, ast.FunctionDef) and n.name in wanted]
    space: dict[str, Any] = {"torch": torch}
    exec(compile(ast.Module(functions, []), module, "exec"), space)

    def retrieval(pictures: Any, texts: Any, owner: Any) -> dict[str, float]:
        scores = torch.from_numpy(texts) @ torch.from_numpy(pictures).t()
        positive = torch.zeros_like(scores, dtype=torch.bool)
        positive[torch.arange(len(scores)), torch.from_numpy(owner)] = True
        ways = {"t2i": (scores, positive), "i2t": (scores.T, positive.T)}
        return {
            f"{way}_r{k}": (space["batchify"](space["recall_at_k"], *sides, 64, "cpu", k=k) > 0).float().mean().item()
            for way, sides in ways.items()
            for k in (1, 5, 10)
        }

    def accuracy(pictures: Any, texts: Any, labels: Any) -> dict[str, float]:
        logits = 100.0 * torch.from_numpy(pictures) @ torch.from_numpy(texts).t()
        top1, top5 = space["accuracy"](logits, torch.from_numpy(labels), topk=(1, 5))
        return {"top1": top1, "top5": top5}

    return retrieval if module == "zeroshot_retrieval" else accuracy


def timed(what: str, images: int, texts: int) -> Claim:
    """All figures of one row against another in a process of its own."""
    command = [sys.executable, __file__, "--measure", str(images), str(texts)]
    answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    wall, cpu, peak = (float(value) for value in answer)
    found = f"{wall:.1f} s ({cpu:.1f} s of processor time), {peak:.2f} GB"
    return (what, found, "30 s, 2 GB", wall < 30 and peak < 2)


def measure(images: int, texts: int) -> int:
    """Embeddings of a reference and of a copy with noise; print seconds, processor seconds and the peak in GB."""
    from mmcompress.measure.drift.figures import answers_of, metrics
    from mmcompress.measure.drift.testset import EvaluationSet, Row

    rng = np.random.default_rng(0)
    classes = images > texts
    owner = rng.integers(0, min(images, texts), max(images, texts))
    few = _normal(rng, min(images, texts))
    many = few[owner] + 2 * _normal(rng, len(owner))
    many /= np.linalg.norm(many, axis=1, keepdims=True)
    pictures, words = (many, few) if classes else (few, many)
    groups = (owner, np.arange(texts)) if classes else (np.arange(images), owner)
    pairs = EvaluationSet([""] * images, np.ones(images, np.bool_), [""] * texts, (), *groups, classes)
    noisy = [side + 0.1 * _normal(rng, len(side)) for side in (pictures, words)]
    noisy = [side / np.linalg.norm(side, axis=1, keepdims=True) for side in noisy]
    start, worked = time.perf_counter(), time.process_time()
    rows = [
        answers_of(pairs, Row(name, "fp32", 100.0, *sides), np.arange(images))
        for name, sides in (("reference", (pictures, words)), ("noisy", noisy))
    ]
    figures = metrics(rows[1], rows[0])
    assert figures.ci95["i2t_r10"] and figures.old_index
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(time.perf_counter() - start, time.process_time() - worked, peak)
    return 0


def _normal(rng: np.random.Generator, rows: int) -> np.ndarray[Any, Any]:
    return rng.standard_normal((rows, WIDTH), dtype=np.float32) / np.float32(np.sqrt(WIDTH))


def named(run: Path, tries: int) -> list[Claim]:
    """How often the module that was scaled wrongly is the first of the list, and how often it is to be kept."""
    if not (run / "int8" / "manifest.json").is_file():
        return [("bisect", f"not measured: {run} holds no finished run", "first in all", None)]
    from mmcompress.int8 import linear_modules
    from mmcompress.measure.bisect.bisect import bisect_document
    from mmcompress.pipeline import standalone

    healthy = Artifact.open(run / "int8")
    config = BisectConfig(data=DataConfig(test="demo:val"), samples=32)
    modules, rng = linear_modules(healthy.model), np.random.default_rng(0)
    first, kept, slowest, missed = 0, 0, 0.0, []
    with tempfile.TemporaryDirectory() as temporary:
        reference = standalone.export(str(run / "quantize"), Path(temporary) / "fp32", {"precisions": ("fp32",)})
        for number in range(tries):
            tower = ("image", "text")[number % 2]
            module = str(rng.choice([name for name in modules if name.startswith(tower)]))
            kind = KINDS[number // 2 % len(KINDS)]
            broken = mis_scaled(healthy, module, kind, Path(temporary) / str(number))
            start = time.perf_counter()
            found = bisect_document(reference, broken, config)
            slowest = max(slowest, time.perf_counter() - start)
            right = found.modules[0].module == module
            first, kept = first + right, kept + (module in found.keep[:1])
            if not right:
                missed.append(f"{module} {kind}: {found.modules[0].module}")
    print(*missed, sep="\n", end="\n" if missed else "")
    about = f"first {first} of {tries}, first to keep {kept}; at most {slowest:.0f} s"
    return [("bisect, one layer scaled wrongly", about, "first in all", first == tries)]


def mis_scaled(source: Artifact, module: str, kind: str, folder: Path) -> Artifact:
    """A copy of an INT8 artifact with the scales of one module changed in its graphs."""
    import onnx
    from onnx import numpy_helper

    from mmcompress.export.audit import linear_of

    manifest = source.manifest
    with Artifact.create(folder, kind=manifest.kind, stage=manifest.stage, key="mis-scaled") as draft:
        for name in manifest.files:
            shutil.copyfile(source.file(name), draft.path / name)
        draft.inherit(source)
        draft.graphs, draft.facts = list(manifest.graphs), dict(manifest.facts)
        for graph in manifest.graphs:
            proto = onnx.load(str(draft.path / graph.file))
            for tensor in proto.graph.initializer:
                linear, _, part = tensor.name.partition(".input." if ".input." in tensor.name else ".weight.")
                if linear_of(linear) == module:
                    changed = changed_values(numpy_helper.to_array(tensor), tensor.name, part, kind)
                    tensor.CopyFrom(numpy_helper.from_array(changed, tensor.name))
            onnx.save_model(proto, str(draft.path / graph.file))
    return Artifact.open(folder)


def changed_values(values: Any, name: str, part: str, kind: str) -> Any:
    """The scale or the zero point of a quantizer, as the kind of mistake has it."""
    factor = {"range x0.25": 0.25, "range x8": 8.0, "weights x1.3": 1.3}.get(kind, 1.0)
    side = ".weight." if kind.startswith("weights") else ".input."
    if part == "scale" and side in name:
        return (values * factor).astype(values.dtype)
    if part == "zero_point" and side in name and kind == "range shifted" and values.dtype == np.uint8:
        return np.asarray(int(values) + (64 if values < 128 else -64), dtype=np.uint8)
    return values


if __name__ == "__main__":
    sys.exit(main())
