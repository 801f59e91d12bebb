"""A run folder as the stages leave it, with figures of a plausible run, to render reports from. No model is inside."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mmcompress.artifact import Artifact, Graph, Kind, TensorSpec

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


def metrics(row: dict[str, Any], shrink: float = 1.0) -> dict[str, Any]:
    r1, r5, r10 = (value * shrink for value in row["r"])
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
    }


def drift_document() -> dict[str, Any]:
    rows = []
    for name, row in ROWS.items():
        quantized = {
            "row": "recovered",
            "cosine_mean": 0.9994,
            "cosine_p01": 0.9981,
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
            }
        )
    return {"backend": "openvino", "test": "demo:test", "rows": rows}


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
    }


def bench_document() -> dict[str, Any]:
    def run(row: str, backend: str, precision: str) -> dict[str, str]:
        return {"row": row, "backend": backend, "precision": precision}

    ratio = {"numerator": run("int8", "openvino", "int8"), "denominator": run("teacher", "onnxruntime", "fp32")}
    own = {"numerator": run("int8", "openvino", "int8"), "denominator": run("recovered", "openvino", "fp32")}
    pairs = [(backend, batch) for backend in ("onnxruntime", "openvino") for batch in (1, 8)]
    return {
        "rows": [{"row": name, "latency": [latency(name, *pair) for pair in pairs]} for name in ROWS],
        "ratios": [
            {**own, "batch": 1, "speedup": 1.81, "ci95": [1.74, 1.9]},
            {**ratio, "batch": 8, "speedup": 7.4, "ci95": [7.2, 7.61]},
            {**ratio, "batch": 1, "speedup": 8.29, "ci95": [8.07, 8.48]},
        ],
        "environment": {"cpu": "AMD EPYC", "cores": 2, "governor": None, "load_average": 0.4},
    }


def measurement(path: Path, stage: str, document: dict[str, Any], measured: list[Artifact]) -> Artifact:
    parents = {f"{i:02d}-{artifact.path.name}": artifact.digest for i, artifact in enumerate(measured)}
    with Artifact.create(path, kind=Kind.REPORT, stage=stage, key=path.name, parents=parents) as draft:
        (draft.path / f"{stage}.json").write_text(json.dumps(document))
    return Artifact.open(path)


def make_run(folder: Path) -> list[Artifact]:
    """Five rows, two engines, bench and drift, in the order of a recipe."""
    graphs = {name: [graph("image", "fp32"), graph("text", "fp32")] for name in ROWS}
    graphs["recovered"] += [graph("image", "fp16"), graph("text", "fp16")]
    graphs["int8"] = [graph(t, "int8", kind) for t in ("image", "text") for kind in ("signed", "unsigned")]
    rows = [onnx_artifact(folder / name, row, graphs[name]) for name, row in ROWS.items()]
    engines = [engine_artifact(folder / f"engine-{precision}", precision) for precision in ("fp16", "int8")]
    bench = measurement(folder / "bench", "bench", bench_document(), rows)
    drift = measurement(folder / "drift", "drift", drift_document(), rows)
    return [*rows, *engines, bench, drift]
