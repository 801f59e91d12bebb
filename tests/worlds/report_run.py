"""A run folder as the stages leave it, with figures of a plausible run, to render reports from. No model is inside."""

from __future__ import annotations

import atexit
import dataclasses
import functools
import io
import itertools
import json
import math
import shutil
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image

from mmcompress.artifact import Artifact
from mmcompress.manifest import Graph, Kind, TensorSpec

PIXELS = TensorSpec(name="pixels", shape=(None, 3, 64, 64), dtype="float32")
TOKENS = TensorSpec(name="tokens", shape=(None, 32), dtype="int32")
EMBEDDING = TensorSpec(name="embedding", shape=(None, 256), dtype="float32")

COLUMNS = ("params", "macs", "kb", "r", "cos", "flip", "ms")
"""kb of (image, text) graphs, R@(1, 5, 10), ms on (ONNX Runtime, OpenVINO)"""
FIGURES: dict[str, tuple[Any, ...]] = {
    "teacher": (14_212_097, 402_653_184, (42_000, 15_400), (0.215, 0.391, 0.478), 1.0, 0.0, (4.31, 4.02)),
    "distilled": (6_012_417, 97_517_568, (9_800, 14_400), (0.197, 0.366, 0.452), 0.911, 0.337, (1.41, 1.33)),
    "pruned": (4_930_113, 55_050_240, (6_100, 13_700), (0.041, 0.102, 0.149), 0.604, 0.871, (0.97, 0.93)),
    "recovered": (4_930_113, 55_050_240, (6_100, 13_700), (0.189, 0.351, 0.441), 0.889, 0.381, (0.96, 0.94)),
    "int8": (4_930_113, 55_050_240, (1_720, 4_300), (0.189, 0.35, 0.44), 0.888, 0.384, (0.88, 0.52)),
}
ROWS = {name: dict(zip(COLUMNS, figures, strict=True)) for name, figures in FIGURES.items()}


def graph(
    tower: str, precision: str, activations: str = "float", target: str | None = None, suffix: str = "onnx"
) -> Graph:
    name = "-".join(part for part in (tower, precision, "" if activations == "float" else activations, target) if part)
    return Graph.model_validate(
        {
            "file": f"{name}.{suffix}",
            "tower": tower,
            "precision": precision,
            "activations": activations,
            "target": target,
            "inputs": (PIXELS if tower == "image" else TOKENS,),
            "outputs": (EMBEDDING,),
        }
    )


def onnx_artifact(path: Path, row: dict[str, Any], graphs: list[Graph]) -> Artifact:
    with Artifact.create(path, kind=Kind.ONNX, stage="export", key=path.name) as draft:
        for item in graphs:
            draft.graphs.append(item)
            size = row["kb"][0 if item.tower == "image" else 1] * (1 if item.activations != "signed" else 2)
            (draft.path / item.file).write_bytes(bytes(size))  # bytes stand for kilobytes
        draft.facts = {"params": row["params"], "macs": row["macs"], "logit_scale": 50.0}
    return Artifact.open(path)


def engine_artifact(path: Path, precision: str) -> Artifact:
    with Artifact.create(path, kind=Kind.ENGINE, stage="build", key=path.name) as draft:
        audits = {}
        for tower in ("image", "text"):
            for target in ("sm86", "sm89", "sm120"):
                item = graph(tower, precision, "signed" if precision == "int8" else "float", target, "engine")
                draft.graphs.append(item)
                (draft.path / item.file).write_bytes(bytes(5_000))
                audits[item.file] = {
                    "layers": 41,
                    "products": {precision: 24, "fp32": 2},
                    "attention": {"fp16": 6},
                    "modules": {"fp32": 1, "int8": 23} if precision == "int8" else {"fp16": 24},
                    "not_int8": [f"{tower}.blocks.5.out"] if precision == "int8" else [],
                    "weights_bytes": 1_234_567,
                }
        draft.facts = {
            "backend": "tensorrt-rtx",
            "tensorrt_version": "1.7.1.116",
            "batches": [1, 8, 32],
            "audit": audits,
        }
    return Artifact.open(path)


def bell(low: float, high: float, middle: float, spread: float, bins: int = 30) -> tuple[list[float], list[int]]:
    """Edges and counts of a histogram with a long right tail."""
    edges = [low + (high - low) * i / bins for i in range(bins + 1)]
    centres = [(a + b) / 2 for a, b in itertools.pairwise(edges)]
    counts = [round(400 * math.exp(-(((c - middle) / (spread * (1 if c < middle else 2.2))) ** 2))) for c in centres]
    return edges, counts


def metrics(row: dict[str, Any], shrink: float = 1.0) -> dict[str, Any]:
    r1, r5, r10 = (value * shrink for value in row["r"])
    change, first = r10 - 0.478 * shrink, row["flip"] == 0.0
    found = {"i2t_r1": r1, "i2t_r5": r5, "i2t_r10": r10, "t2i_r1": r1 * 0.9, "t2i_r5": r5 * 0.9, "t2i_r10": r10 * 0.9}
    ci = {"i2t_r1": [r1 - 0.018, r1 + 0.019], "i2t_r10": [r10 - 0.023, r10 + 0.022]}
    return {
        **found,
        "top1": r1,
        "cosine_mean": row["cos"],
        "cosine_p01": row["cos"] - 0.12,
        "text_cosine_mean": row["cos"],
        "flip_rate": row["flip"],
        "ci95": ci,
        "top5": r5,
        "mean_per_class_recall": r1,
        "cosine_worst": row["cos"] - 0.3 if not first else 1.0,
        "text_cosine_p01": row["cos"] - 0.1,
        "rank_correlation": 0.4 + 0.6 * row["cos"],
        "margin_mean": 0.021 + 0.02 * row["cos"],
        "flips_gained": row["flip"] * 0.11,
        "flips_lost": row["flip"] * 0.14,
        "mcnemar_p": 1.0 if first else 0.0021 if row["flip"] > 0.35 else 0.071,
        "ece": 0.031,
        "old_index": {key: value * (0.97 if not first else 1.0) for key, value in found.items()},
        "r10_change": {
            "i2t": change,
            "ci95": [change - 0.017, change + 0.016],
            "significant": not change - 0.017 <= 0 <= change + 0.016,
        },
    }


LOST = ("red apple", "clinking glasses", "flag: Åland Islands", "smiling face with <script>alert(1)</script>", "人")


def per_class(loss: float) -> list[dict[str, Any]]:
    shares = [(name, 0.85 - 0.09 * i, max(0.0, 0.85 - 0.09 * i - loss / (1 + i))) for i, name in enumerate(LOST)]
    return [{"label": name, "images": 7 + i, "before": a, "after": b} for i, (name, a, b) in enumerate(shares)]


def classification() -> dict[str, Any]:
    shares = [(name, 0.2 + 0.1 * i, 0.3 + 0.1 * i) for i, name in enumerate(LOST)]
    classes = [
        {"label": n, "support": 9, "answered": 7, "precision": p, "recall": r, "f1": 2 * p * r / (p + r)}
        for n, p, r in shares
    ]
    never = {"label": "moon cake", "support": 3, "answered": 0, "precision": None, "recall": 0.0, "f1": 0.0}
    confusions = [{"label": LOST[0], "answer": "moon cake", "images": 4, "share": 4 / 9}]
    means = {"precision": 0.333, "recall": 0.417, "f1": 0.369}
    return {**means, "classes": [never, *classes], "confusions": confusions}


def previous_of(name: str, row: dict[str, Any]) -> dict[str, Any] | None:
    names = list(ROWS)
    if name == names[0]:
        return None
    before = names[names.index(name) - 1]
    change = row["r"][2] - ROWS[before]["r"][2]
    return {
        "row": before,
        "cosine_mean": 0.95,
        "cosine_p01": 0.87,
        "cosine_worst": 0.61,
        "flip_rate": 0.2,
        "flips_gained": 0.02,
        "flips_lost": 0.05,
        "mcnemar_p": 0.0002,
        "rank_correlation": 0.93,
        "r10_change": {
            "i2t": change,
            "ci95": [change - 0.012, change + 0.012],
            "significant": abs(change) > 0.012,
        },
    }


def gallery_entry(index: int) -> dict[str, Any]:
    truth, other = LOST[index % len(LOST)], LOST[(index + 2) % len(LOST)]
    teacher, answer = ((truth, other), (other, truth), (other, "moon cake"))[index % 3]
    maps = {who: {"map": f"gallery/{index:03d}-{who}.webp"} if index < 3 else {} for who in ("teacher", "answer")}
    return {
        "file": f"gallery/{index:03d}.webp",
        "key": f"test-00000/{index:06d}",
        "truth": [truth],
        "row": "int8",
        "teacher": {"text": teacher, "score": 0.412 - 0.01 * index} | maps["teacher"],
        "answer": {"text": answer, "score": 0.377 - 0.01 * index} | maps["answer"],
    }


def gallery_picture(index: int) -> bytes:
    image = Image.radial_gradient("L").resize((96, 96)).convert("RGB")
    tint = Image.new("RGB", image.size, ((40 * index) % 256, (90 * index) % 256, 200))
    stream = io.BytesIO()
    Image.blend(image, tint, 0.5).save(stream, "WEBP")
    return stream.getvalue()


def drift_document() -> dict[str, Any]:
    rows = []
    for name, row in ROWS.items():
        quantized = {
            "row": "recovered",
            "cosine_mean": 0.9994,
            "cosine_p01": 0.9981,
            "text_cosine_mean": 0.9993,
            "flip_rate": 0.021,
            "r10_drop": 0.001,
        }
        rows.append(
            {
                "row": name,
                "precision": "int8" if name == "int8" else "fp32",
                "images": 1759,
                "candidates": 1852,
                "metrics": metrics(row),
                "against": "teacher",
                "unseen_images": 93,
                "unseen": metrics(row, 0.4),
                "int8_against_fp32": quantized if name == "int8" else None,
                "previous": previous_of(name, row),
                "cosine_histogram": None if name == "teacher" else cosine_histogram(row["cos"]),
                "per_class": [] if name == "teacher" else per_class(row["flip"]),
                "classification": classification(),
            }
        )
    return {"backend": "openvino", "test": "demo:test", "rows": rows, "gallery": [gallery_entry(i) for i in range(7)]}


def cosine_histogram(mean: float) -> dict[str, Any]:
    edges, counts = bell(mean - 0.3, 1.0, mean, 0.04)
    return {"edges": edges, "counts": counts}


def latency(name: str, backend: str, batch: int) -> dict[str, Any]:
    median = ROWS[name]["ms"][0 if backend == "onnxruntime" else 1] * batch**0.9
    return {
        "backend": backend,
        "device": "AMD EPYC",
        "precision": "int8" if name == "int8" else "fp32",
        "activations": "unsigned" if name == "int8" else "float",
        "batch": batch,
        "threads": 2,
        "samples": 1000,
        "p50_ms": median,
        "p90_ms": median * 1.08,
        "p99_ms": median * (9.0 if (name, backend) == ("pruned", "openvino") else 1.31),
        "mean_ms": median * 1.02,
        "throughput_ips": 1000 * batch / median / 1.02,
        "peak_bytes": 98_000_000,
        "energy_mj": None,
        "throttled": None,
        "streams": 1,
        "p95_ms": median * 1.13,
        "cv": 0.062,
        "load_ms": 48.0 + median,
        "first_ms": median * 2.4,
        "rounds_ms": [median * (1 + 0.01 * math.sin(i)) for i in range(12)],
        "histogram": dict(
            zip(("edges_ms", "counts"), bell(median * 0.9, median * 1.5, median, median * 0.03), strict=True)
        ),
        "device_peak_bytes": None,
        "energy_source": None,
        "ceiling_share": 0.31 if backend == "openvino" else 0.24,
        "pipeline": {"input_ms": 0.41 * batch, "together_ms": median + 0.2, "throughput_ips": 900.0},
        "noisy": (name, backend) == ("pruned", "openvino"),
    }


def bench_document(cpu: str = "AMD EPYC") -> dict[str, Any]:
    def run(row: str, backend: str, precision: str) -> dict[str, str]:
        return {"row": row, "backend": backend, "precision": precision}

    ratio = {"numerator": run("int8", "openvino", "int8"), "denominator": run("teacher", "onnxruntime", "fp32")}
    own = {"numerator": run("int8", "openvino", "int8"), "denominator": run("recovered", "openvino", "fp32")}
    pairs = [(backend, batch) for backend in ("onnxruntime", "openvino") for batch in (1, 8)]
    return {
        "rows": [{"row": name, "latency": [latency(name, *pair) for pair in pairs]} for name in ROWS],
        "ratios": [
            {**own, "batch": 1, "speedup": 1.81, "ci95": [1.74, 1.9], "significant": True},
            {**ratio, "batch": 8, "speedup": 7.4, "ci95": [7.2, 7.61], "significant": True},
            {**ratio, "batch": 1, "speedup": 8.29, "ci95": [8.07, 8.48], "significant": True},
        ],
        "ceiling": [
            {
                "backend": backend,
                "device": cpu,
                "precision": precision,
                "threads": 2,
                "gmacs_per_s": g,
                "shape": [512] * 3,
            }
            for backend, precision, g in (("openvino", "int8", 412.0), ("openvino", "fp32", 171.0))
        ],
        "environment": {
            "python": "3.11.7",
            "platform": "Linux-6.1-x86_64-with-glibc2.36",
            "mmcompress": "0.1.0",
            "cpu": cpu,
            "cores": 2,
            "governor": None,
            "power_mode": None,
            "load_average": 0.4,
            "memory_bytes": 25_325_268_992,
            "pinned_cores": None,
            "priority": "normal",
            "clocks_mhz": {"before": [2450.0, 2450.0], "after": [2431.0, 2450.0]},
            "temperature_c": {"before": None, "after": None},
            "load_average_before": 0.4,
            "load_average_after": 0.9,
            "others_share": 0.09,
            "stolen_share": None,
            "noise": {"level": 0.08, "noisy": True, "reason": "the median of a fixed loop moved by 8%"},
            "warnings": ["Another process used 34% of a core."],
            "gpu_power_limit": None,
            "seconds": 1.0,
            "rounds": 12,
        },
    }


def bisect_document() -> dict[str, Any]:
    names = [
        f"{tower}.blocks.{i}.{m}" for tower in ("image", "text") for i in range(3) for m in ("qkv", "out", "fc1", "fc2")
    ]
    modules = [
        {
            "module": name,
            "tower": name.split(".")[0],
            "local_sqnr_db": 24.0 + 0.7 * i,
            "local_cosine_mean": 0.998,
            "excess_db": 9.0 - 0.5 * i,
            "carried_sqnr_db": 21.0 + 0.3 * i,
            "share": 0.3 / (1 + i),
        }
        for i, name in enumerate(names)
    ]
    blocks = [
        {
            "block": f"{tower}.blocks.{i}",
            "tower": tower,
            "carried_cosine_mean": 0.999,
            "carried_sqnr_db": 31.0 - 2.3 * i - 3 * k,
        }
        for k, tower in enumerate(("image", "text"))
        for i in range(6)
    ]
    sides = {"reference": {"row": "recovered", "precision": "fp32"}, "candidate": {"row": "int8", "precision": "int8"}}
    return {
        "schema": 1,
        **sides,
        "backend": "onnxruntime",
        "samples": 256,
        "modules": modules,
        "blocks": blocks,
        "keep": names[:2],
    }


def quantized_artifact(path: Path) -> Artifact:
    entries = [
        {"module": one["module"], "drift": 0.004 / (1 + i), "kept": i < 2}
        for i, one in enumerate(bisect_document()["modules"])
    ]
    teacher = {"teacher": {"source": "vit-b32"}}
    with Artifact.create(path, kind=Kind.CHECKPOINT, stage="quantize", key=path.name, config=teacher) as draft:
        draft.facts = {"sensitivity": entries, "budget": 0.002, "choices": {}}
    return Artifact.open(path)


def measurement(path: Path, stage: str, document: dict[str, Any], measured: list[Artifact]) -> Artifact:
    parents = {f"{i:02d}-{artifact.path.name}": artifact.digest for i, artifact in enumerate(measured)}
    with Artifact.create(path, kind=Kind.REPORT, stage=stage, key=path.name, parents=parents) as draft:
        (draft.path / f"{stage}.json").write_text(json.dumps(document))
        for index, entry in enumerate(document.get("gallery", [])):
            (draft.path / entry["file"]).parent.mkdir(exist_ok=True)
            for file in filter(None, (entry["file"], entry["teacher"].get("map"), entry["answer"].get("map"))):
                (draft.path / file).write_bytes(gallery_picture(index))
    return Artifact.open(path)


def make_run(folder: Path) -> list[Artifact]:
    """Five rows, two engines, a calibration, and all measurements, in the order of a recipe.

    They are written once a process and copied, since syncing every file takes its time.
    """
    original = _original_run()
    for artifact in original:
        shutil.copytree(artifact.path, folder / artifact.path.name, dirs_exist_ok=True)
    return [dataclasses.replace(artifact, path=folder / artifact.path.name) for artifact in original]


@functools.cache
def _original_run() -> list[Artifact]:
    folder = Path(tempfile.mkdtemp(prefix="report-run-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    graphs = {name: [graph("image", "fp32"), graph("text", "fp32")] for name in ROWS}
    graphs["recovered"] += [graph("image", "fp16"), graph("text", "fp16")]
    graphs["int8"] = [graph(t, "int8", kind) for t in ("image", "text") for kind in ("signed", "unsigned")]
    rows = [onnx_artifact(folder / name, row, graphs[name]) for name, row in ROWS.items()]
    engines = [engine_artifact(folder / f"engine-{precision}", precision) for precision in ("fp16", "int8")]
    bench = measurement(folder / "bench", "bench", bench_document(), rows)
    drift = measurement(folder / "drift", "drift", drift_document(), rows)
    bisect = measurement(folder / "bisect", "bisect", bisect_document(), rows[3:])
    return [*rows, *engines, quantized_artifact(folder / "quantize"), bench, drift, bisect]
