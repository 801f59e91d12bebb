"""What a session costs over the bare call of OpenVINO or ONNX Runtime, at batch 1: 3% or 20 microseconds at most.

python benchmarks/session_overhead.py [--model vit-b32] [--calls 4000]

The bare call is the runtime's own, on the object that the session itself runs: the same request, the same weights and
threads, the array where it is. Calls alternate one by one, and which is first alternates too; the cost is the median
of the differences within a pair. Two graphs: an image tower in INT8 of true size with random weights, and a pooling
with a small product behind it, which has the inputs and outputs of a tower and hardly computes, so that what is left is
the overhead. Exits with 1 where a graph misses both bars.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper, save

from mmcompress.compress.train.student import preset_config
from mmcompress.config import Backend, StudentConfig
from mmcompress.export.sized import write_probes
from mmcompress.manifest import Graph, TensorSpec, TextProcessing
from mmcompress.runtime.backends import open_file
from mmcompress.runtime.machine import cpu_model
from mmcompress.runtime.session import Session

SIDE, DIM = 224, 512
SHARE, MICROSECONDS = 0.03, 20.0
WARM = 50


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vit-b32")
    parser.add_argument("--calls", type=int, default=4000, help="pairs of the small graph; a tenth of the tower")
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    print(f"{cpu_model()}, {asked.threads} threads, batch 1; medians and the middle half of {asked.calls} pairs")
    print(f"{'graph':10} {'backend':>12} {'bare µs':>10} {'session µs':>11} {'difference µs':>24} {'ratio':>8}")
    missed = False
    with tempfile.TemporaryDirectory() as temporary:
        graphs = {"pooling": (pooling(Path(temporary)), asked.calls), asked.model: (tower(asked.model, temporary), 0)}
        for name, ((path, graph), calls) in graphs.items():
            backends: tuple[Backend, ...] = ("openvino", "onnxruntime")
            for backend in backends:
                with open_file(path, graph, backend, threads=asked.threads) as session:
                    missed |= not row(name, backend, session, calls or max(100, asked.calls // 10))
    return int(missed)


def pooling(folder: Path) -> tuple[Path, Graph]:
    """(B, 3, 224, 224) -> (B, 512)"""
    weight = np.random.default_rng(0).standard_normal((3, DIM), dtype=np.float32)
    nodes = [
        helper.make_node("GlobalAveragePool", ["pixels"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weight"], ["embedding"]),
    ]
    values = [
        helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["B", 3, SIDE, SIDE]),
        helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["B", DIM]),
    ]
    made = helper.make_graph(nodes, "pooling", values[:1], values[1:], [numpy_helper.from_array(weight, "weight")])
    path = folder / "pooling.onnx"
    save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    pixels = TensorSpec(name="pixels", shape=(None, 3, SIDE, SIDE), dtype="float32")
    embedding = TensorSpec(name="embedding", shape=(None, DIM), dtype="float32")
    return path, Graph(file=path.name, tower="image", precision="fp32", inputs=(pixels,), outputs=(embedding,))


def tower(name: str, folder: str) -> tuple[Path, Graph]:
    text = TextProcessing(file="tokenizer.json", context=77, eos_token_id=2, pad_token_id=0)
    model = preset_config(StudentConfig(source=name), DIM, text, 49408)
    probe = write_probes(model, [model.image], Path(folder) / name, "int8", ())
    return probe.file(probe.manifest.graphs[0].file), probe.manifest.graphs[0]


def bare(session: Any, backend: Backend, pixels: NDArray[np.float32]) -> Callable[[], object]:
    """The runtime's own call, with results that outlive the next one."""
    if backend == "onnxruntime":
        return lambda: session._session.run(["embedding"], {"pixels": pixels})
    request = session._request

    def infer() -> object:
        request.infer({"pixels": pixels}, share_inputs=True)
        return request.get_output_tensor(0).data.copy()

    return infer


def row(name: str, backend: Backend, session: Session, calls: int) -> bool:
    """Print one line; whether a bar is met."""
    pixels = np.random.default_rng(1).standard_normal((1, 3, SIDE, SIDE), dtype=np.float32)
    pair = (bare(session, backend, pixels), lambda: session.run({"pixels": pixels}))
    for call in pair * WARM:
        call()
    took = np.empty((calls, 2))
    for number in range(calls):
        for side in (0, 1) if number % 2 else (1, 0):
            begun = time.perf_counter_ns()
            pair[side]()
            took[number, side] = (time.perf_counter_ns() - begun) / 1e3
    low, middle, high = np.percentile(took[:, 1] - took[:, 0], (25, 50, 75))
    without, within = np.median(took, axis=0)
    spread = f"{middle:.1f} [{low:.1f}, {high:.1f}]"
    print(f"{name:10} {backend:>12} {without:10.1f} {within:11.1f} {spread:>24} {within / without:8.4f}", flush=True)
    return bool(middle <= max(MICROSECONDS, SHARE * without))


if __name__ == "__main__":
    sys.exit(main())
