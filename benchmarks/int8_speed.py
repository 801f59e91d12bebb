"""INT8 at 224 pixels: how much faster than FP32, and how near to what the machine can do.

python benchmarks/int8_speed.py [--models vit-b32 vit-s16]

Image towers of true size with random weights (time depends on sizes only), as FP32 and INT8 graphs for CPUs. Batch 1
and batch 8 on OpenVINO and ONNX Runtime are interleaved in one run; the speedup is of INT8 on OpenVINO over the faster
FP32. The ceiling is one large quantized product on the same backend, in the same process. On a CPU without VNNI or AMX
the ratios say little about INT8 elsewhere, so the instruction sets are printed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np

from mmcompress.artifact import TextProcessing
from mmcompress.compress.student import preset_config
from mmcompress.config import Backend, Precision, StudentConfig
from mmcompress.export.probe import write_probes
from mmcompress.runtime.ceiling import ceilings, share
from mmcompress.runtime.estimate import paired_speedup
from mmcompress.runtime.interleave import Record, add_round
from mmcompress.runtime.machine import cpu_model, usable_cores
from mmcompress.runtime.scheduling import realtime
from mmcompress.runtime.subjects import Subject

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
        f"{'':8} {'batch':>5} {'backend':>12} {'precision':>9} {'ms':>8} {'INT8 on OpenVINO is':>20} {'of ceiling':>10}"
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
    subjects = []
    precisions: tuple[Precision, ...] = ("fp32", "int8")
    backends: tuple[Backend, ...] = ("openvino", "onnxruntime")
    for precision in precisions:
        probe = write_probes(model, [model.image], folder / precision, precision)
        subjects += [Subject(probe, probe.manifest.graphs[0], backend, threads) for backend in backends]
    combinations = [(subject, batch) for batch in (1, 8) for subject in subjects]
    records = [Record() for _ in combinations]
    with realtime():
        for number in range(ROUNDS):
            add_round(records, combinations, ROUND_S, number)
        found, _ = ceilings(subject.kernel for subject in subjects)
    for batch in (1, 8):
        measured = {
            (subject.backend, subject.graph.precision): (subject, record)
            for (subject, size), record in zip(combinations, records, strict=True)
            if size == batch
        }
        ours = measured["openvino", "int8"][1]
        for (backend, precision), (subject, record) in measured.items():
            ms = float(np.median(record.calls))
            ratio = paired_speedup(ours.rounds, record.rounds)
            macs = model.image.pooled_macs(model.embed_dim)
            reached = share(found, subject.kernel, macs, 1000 * batch / ms)
            speed = f"{ratio.speedup:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]"
            print(
                f"{name:8} {batch:5d} {backend:>12} {precision:>9} {ms:8.2f} {speed:>20} {reached or 0:10.0%}",
                flush=True,
            )


if __name__ == "__main__":
    sys.exit(main())
