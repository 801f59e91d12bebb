"""INT8 of a MobileNetV4 tower beside a ViT's, NNCF's and ONNX Runtime's own: processor time of one image, and layers.

    python benchmarks/mnv4_int8.py [--rounds 12] [--environments DIR] [--without-teacher]

Image towers of true size at 224 pixels with random weights, since time depends on sizes only: `mnv4-m` and `vit-s16` in
FP32 and in our INT8 for CPUs, the `mnv4-m` graph as NNCF and ONNX Runtime's static quantization write it (from the
environment that `make bench` makes; where it is absent that is said), and a ViT-L/14 in FP32. Every file runs on one
thread at batch 1, all in turn, round by round, and what is told is processor time, which other programs disturb less
than the clock: medians, and the median ratio of the rounds with its quartiles. `faster` is the faster of OpenVINO and
ONNX Runtime by its median.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from int8_peers import PEERS
from int8_speed import instruction_sets

from mmcompress.artifact import Artifact
from mmcompress.compress.train.student import preset_config
from mmcompress.config import StudentConfig
from mmcompress.export.sized import write_probes
from mmcompress.manifest import TextProcessing
from mmcompress.runtime.backends import CPU_BACKENDS, open_file
from mmcompress.runtime.machine import cpu_model

SIDE = 224
CALLS = 5
SAMPLES = 16
Call = Callable[[], Any]
Rounds = dict[str, list[float]]


def artifact_of(name: str, precision: str, folder: Path) -> Artifact:
    text = TextProcessing(file="tokenizer.json", context=77, eos_token_id=2, pad_token_id=0)
    model = preset_config(StudentConfig(source=name), 512, text, 49408)
    return write_probes(model, [model.image], folder / f"{name}-{precision}", precision)  # type: ignore[arg-type]


def peer_file(peer: str, graph: Path, environments: Path, folder: Path) -> Path | None:
    """The graph as a peer quantizes it, None where it is not installed or fails."""
    name, environment = PEERS[peer]
    python = environments / environment / "bin" / "python"
    if not python.exists():
        print(f"{name}: there is no {python}, `make bench` makes it", file=sys.stderr)
        return None
    samples, out = folder / "samples.npz", folder / f"{peer}.onnx"
    np.savez(samples, pixels=np.random.default_rng(0).standard_normal((SAMPLES, 3, SIDE, SIDE), dtype=np.float32))
    peers = Path(__file__).with_name("int8_peers.py")
    done = subprocess.run([str(python), str(peers), "--peer", peer, str(graph), str(samples), str(out)], check=False)
    made = out if out.is_file() else out.with_suffix(".xml")
    return made if done.returncode == 0 and made.is_file() else None


def opened(files: Mapping[str, tuple[Path, Any]]) -> Iterator[tuple[str, Call]]:
    """A call by `NAME, backend`, for every backend that takes the file."""
    pixels = np.random.default_rng(1).standard_normal((1, 3, SIDE, SIDE), dtype=np.float32)
    for name, (path, graph) in files.items():
        for backend in CPU_BACKENDS if path.suffix == ".onnx" else ("openvino",):
            session = open_file(path, graph, backend, threads=1)  # type: ignore[arg-type]
            feeds = {session.inputs[0].name: pixels}
            yield f"{name}, {backend}", lambda session=session, feeds=feeds: session.run(feeds)


def timed(calls: Mapping[str, Call], rounds: int) -> Rounds:
    """Milliseconds of the processor by round, the median of some calls each."""
    found: Rounds = {name: [] for name in calls}
    gc.disable()
    for number in range(rounds + 1):
        for name, call in calls.items():
            call()
            each = []
            for _ in range(CALLS if "vit-l14" not in name else 1):
                began = time.process_time()
                call()
                each.append(1e3 * (time.process_time() - began))
            if number:
                found[name].append(statistics.median(each))
    return found


def faster(found: Rounds, name: str) -> str:
    return min((key for key in found if key.startswith(f"{name}, ")), key=lambda key: statistics.median(found[key]))


def ratio(found: Rounds, slow: str, fast: str) -> str:
    """How many times as fast, by rounds."""
    a, b = faster(found, slow), faster(found, fast)
    low, middle, high = statistics.quantiles([x / y for x, y in zip(found[a], found[b], strict=True)], n=4)
    return f"| {a} | {b} | {middle:.2f} [{low:.2f}, {high:.2f}] |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--environments", type=Path, default=Path(), help="folder that the peers' environments are in")
    parser.add_argument("--without-teacher", action="store_true")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        files: dict[str, tuple[Path, Any]] = {}
        wanted = [("mnv4-m", "fp32"), ("mnv4-m", "int8"), ("vit-s16", "fp32"), ("vit-s16", "int8")]
        for name, precision in wanted + ([] if asked.without_teacher else [("vit-l14", "fp32")]):
            made = artifact_of(name, precision, folder)
            files[f"{name} {precision}"] = made.path / made.manifest.graphs[0].file, made.manifest.graphs[0]
        source, graph = files["mnv4-m fp32"]
        peers = {peer: peer_file(peer, source, asked.environments, folder) for peer in ("nncf", "ort")}
        files |= {f"mnv4-m {PEERS[peer][0]}": (path, graph) for peer, path in peers.items() if path}
        found = timed(dict(opened(files)), asked.rounds)
    print(f"{cpu_model()}, 1 thread, {instruction_sets()}; {asked.rounds} rounds of {CALLS} calls\n")
    print("| file, backend | CPU ms, median | lowest |\n|---|--:|--:|")
    for name, times in found.items():
        print(f"| {name} | {statistics.median(times):.2f} | {min(times):.2f} |")
    print("\n| slower | faster | times as fast |\n|---|---|--:|")
    slower = ["vit-s16 int8", "mnv4-m fp32", *(f"mnv4-m {PEERS[peer][0]}" for peer, path in peers.items() if path)]
    for slow in slower + ([] if asked.without_teacher else ["vit-l14 fp32"]):
        print(ratio(found, slow, "mnv4-m int8"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
