"""Memory under load: many inferences, batches that change, threads that share a session, sessions opened and closed.

    python benchmarks/load.py [--backend onnxruntime|openvino] [--calls 1000000] [--sessions 100]

The graph is a small product, so that calls take microseconds and everything that is left of one would be seen. Resident
memory is read after a hundredth of the calls and at their end, and after a tenth of the sessions and at their end; it
may grow by 1%. What threads get is compared with what one gets. Prints a table in Markdown; exits with 1 where a bar is
missed.
"""

from __future__ import annotations

import argparse
import gc
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import cast

import numpy as np
import psutil
from onnx import TensorProto, helper, numpy_helper, save

from mmcompress.config import Backend
from mmcompress.manifest import Graph, TensorSpec
from mmcompress.runtime.backends import open_file
from mmcompress.runtime.machine import cpu_model, usable_cores
from mmcompress.runtime.session import Session

WIDTH, LARGEST, THREADS = 16, 8, 4
BAR = 0.01


def product(folder: Path) -> tuple[Path, Graph]:
    """(B, 16) -> (B, 16)"""
    weight = np.random.default_rng(0).standard_normal((WIDTH, WIDTH), dtype=np.float32)
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["B", WIDTH]) for name in ("rows", "embedding")]
    node = helper.make_node("MatMul", ["rows", "weight"], ["embedding"])
    made = helper.make_graph([node], "product", values[:1], values[1:], [numpy_helper.from_array(weight, "weight")])
    save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), folder / "product.onnx")
    specs = [TensorSpec(name=name, shape=(None, WIDTH), dtype="float32") for name in ("rows", "embedding")]
    graph = Graph(file="product.onnx", tower="image", precision="fp32", inputs=(specs[0],), outputs=(specs[1],))
    return folder / "product.onnx", graph


def resident() -> int:
    """Bytes of this process in memory."""
    gc.collect()
    return int(psutil.Process().memory_info().rss)


def called(session: Session, batches: list[np.ndarray], calls: int) -> None:
    for number in range(calls):
        session.run({"rows": batches[number % len(batches)]})


def in_threads(session: Session, batches: list[np.ndarray], calls: int) -> bool:
    """Whether threads that share a session get what one gets."""
    expected = [session.run({"rows": rows})["embedding"].copy() for rows in batches]

    def same(first: int) -> bool:
        return all(
            np.array_equal(session.run({"rows": batches[n % len(batches)]})["embedding"], expected[n % len(batches)])
            for n in range(first, calls, THREADS)
        )

    with ThreadPoolExecutor(THREADS) as pool:
        return all(pool.map(same, range(THREADS)))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", choices=("onnxruntime", "openvino"), default="onnxruntime")
    parser.add_argument("--calls", type=int, default=1_000_000)
    parser.add_argument("--sessions", type=int, default=100)
    asked = parser.parse_args()
    backend = cast(Backend, asked.backend)
    noise = np.random.default_rng(1)
    batches = [noise.standard_normal((1 + n % LARGEST, WIDTH), dtype=np.float32) for n in range(64)]
    rows: list[tuple[str, int, int, int]] = []
    with tempfile.TemporaryDirectory() as folder:
        path, graph = product(Path(folder))
        with open_file(path, graph, backend, threads=1) as session:
            begun = time.process_time()
            called(session, batches, asked.calls // 100)
            before = resident()
            called(session, batches, asked.calls - asked.calls // 100)
            rows.append((f"one thread, batches of 1 to {LARGEST}", asked.calls, before, resident()))
            seconds = time.process_time() - begun
            same = in_threads(session, batches, asked.calls // 100)
            before = resident()
            same &= in_threads(session, batches, asked.calls // 10)
            rows.append((f"{THREADS} threads share a session", asked.calls // 10, before, resident()))
        for number in range(asked.sessions):
            with open_file(path, graph, backend, threads=1) as session:
                called(session, batches, 10)
            if number == asked.sessions // 10 - 1:
                before = resident()
        rows.append(("sessions opened and closed", asked.sessions, before, resident()))
    print(f"{cpu_model()}, {usable_cores()} cores; python benchmarks/load.py {' '.join(sys.argv[1:])}\n")
    print(f"| {asked.backend} | times | MB before | MB after | growth |\n|---|--:|--:|--:|--:|")
    for what, times, before, after in rows:
        print(f"| {what} | {times:,} | {before / 1e6:.1f} | {after / 1e6:.1f} | {after / before - 1:+.2%} |")
    print(f"\n{seconds / asked.calls * 1e6:.1f} µs of CPU time a call. Threads got {'the same' if same else 'OTHERS'}.")
    return int(not same or any(after > (1 + BAR) * before for _, _, before, after in rows))


if __name__ == "__main__":
    sys.exit(main())
