"""INT8 at 224 pixels: how much faster than FP32, and how near to what the machine can do.

python benchmarks/int8_speed.py [--models vit-b32 vit-s16]

Image towers of true size with random weights (time depends on sizes only), as FP32 graphs for CPUs and as the INT8 ones
that a verdict chooses from, where attention is integers too if that is faster and drifts little enough. Batch 1 and
batch 8 on OpenVINO and ONNX Runtime are interleaved in one run; a speed-up is over the faster FP32. The ceiling is one
large quantized product on the same backend, in the same process. On a CPU without VNNI or AMX the ratios say little
about INT8 elsewhere, so the instruction sets are printed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np

from mmcompress.compress.train.student import preset_config
from mmcompress.config import Backend, Precision, StudentConfig
from mmcompress.export.graph import AttentionProduct
from mmcompress.export.sized import write_probes
from mmcompress.manifest import TextProcessing
from mmcompress.measure.ceiling import ceilings, share
from mmcompress.measure.estimate import paired_speedup
from mmcompress.measure.interleave import Record, add_round
from mmcompress.measure.subjects import Subject
from mmcompress.runtime.machine import cpu_model, usable_cores
from mmcompress.runtime.scheduling import realtime

GRAPHS: tuple[tuple[str, Precision, tuple[AttentionProduct, ...]], ...] = (
    ("FP32", "fp32", ()),
    ("INT8", "int8", ()),
    ("INT8, scores", "int8", ("scores",)),
    ("INT8, attention", "int8", ("scores", "mixed")),
)
BATCHES = (1, 8)
ROUNDS = 8
ROUND_S = 1.0
INSTRUCTIONS = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "amx_int8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["vit-b32", "vit-s16"])
    asked = parser.parse_args()
    threads = usable_cores()
    print(f"{cpu_model()}, {threads} threads, {instruction_sets()}")
    print(
        f"{'':8} {'batch':>5} {'backend':>12} {'graph':>15} {'ms':>8} {'over the faster FP32':>20} {'of ceiling':>10}"
    )
    for name in asked.models:
        with tempfile.TemporaryDirectory() as temporary:
            rows(name, threads, Path(temporary))
    return 0


def instruction_sets() -> str:
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("flags", 1)[1].split("\n", 1)[0].split()
    except (OSError, IndexError):
        return "unknown instruction sets"
    return ", ".join(name for name in INSTRUCTIONS if name in flags) or "none of " + ", ".join(INSTRUCTIONS)


def rows(name: str, threads: int, folder: Path) -> None:
    text = TextProcessing(file="tokenizer.json", context=77, eos_token_id=2, pad_token_id=0)
    model = preset_config(StudentConfig(source=name), 512, text, 49408)
    subjects: dict[tuple[str, Backend], Subject] = {}
    backends: tuple[Backend, ...] = ("openvino", "onnxruntime")
    for graph, precision, attention in GRAPHS:
        probe = write_probes(model, [model.image], folder / graph, precision, attention)
        subjects |= {(graph, b): Subject(probe, probe.manifest.graphs[0], b, threads) for b in backends}
    combinations = [(subject, batch) for batch in BATCHES for subject in subjects.values()]
    records = [Record() for _ in combinations]
    with realtime():
        for number in range(ROUNDS):
            add_round(records, combinations, ROUND_S, number)
        found, _ = ceilings(subject.kernel for subject in subjects.values())
    for index, batch in enumerate(BATCHES):
        measured = dict(zip(subjects, records[index * len(subjects) : (index + 1) * len(subjects)], strict=True))
        floats = [record for (graph, _), record in measured.items() if graph == "FP32"]
        to_beat = min(floats, key=lambda record: float(np.median(record.calls)))
        for (graph, backend), record in measured.items():
            subject, ms = subjects[graph, backend], float(np.median(record.calls))
            ratio = paired_speedup(record.rounds, to_beat.rounds)
            macs = model.image.pooled_macs(model.embed_dim)
            reached = share(found, subject.kernel, macs, 1000 * batch / ms)
            speed = f"{ratio.speedup:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]"
            print(
                f"{name:8} {batch:5d} {backend:>12} {graph:>15} {ms:8.2f} {speed:>20} {reached or 0:10.0%}",
                flush=True,
            )


if __name__ == "__main__":
    sys.exit(main())
