"""Where an inherited student starts and ends: evenly spaced blocks as they are, fitted, and pruned by what harms least.

    python benchmarks/inherit.py [--data drawings|photos] [--shares 0.25 0.5] [--seeds 0 1 2] [--steps 300] [--work DIR]

Three starts of the image tower at the same share of its MACs: TinyCLIP's manner, evenly spaced blocks and in each the
heads and MLP units of the largest weight norm; the same blocks fitted on samples, which is `inherit:F`; and what
`prune --target-macs F` leaves, of which a race on a backend says how fast it is: many thin blocks take longer than few
thick ones. Then all are trained on the same samples with the same schedule, those that were fitted in fewer steps, by
the processor time that their start took. Scores are those of `objectives.py`, which shares teacher, embeddings and
validation images with this.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import get_args

import torch
from training import DATA, PHOTOS, TRAINED, Scorer, model_of, prepared

from mmcompress.architecture import ImageConfig
from mmcompress.artifact import Artifact
from mmcompress.compress.train.embeddings import load_embeddings
from mmcompress.compress.train.inherit import inherited, samples_to_fit
from mmcompress.config import Backend, DataConfig, StudentConfig
from mmcompress.distributed import World
from mmcompress.export.sized import write_probes
from mmcompress.huggingface import FOLDER_FILES, save_checkpoint
from mmcompress.manifest import Kind
from mmcompress.measure.compare import race
from mmcompress.measure.subjects import Subject
from mmcompress.model import DualEncoder
from mmcompress.pipeline import standalone

FIT: int = StudentConfig.model_fields["fit"].default


def evenly_spaced(teacher: Artifact, share: float, fit: int, embeddings: Artifact, train: str) -> DualEncoder:
    """What `inherit:F` makes of the image tower, fitted on some samples or on none."""
    alone = World(0, 1, torch.device("cpu"))
    data = DataConfig.model_validate({"train": train})
    samples = samples_to_fit(teacher, data, 0, fit, load_embeddings(embeddings), alone)
    return inherited(model_of(teacher), share, ("image",), samples)


def timed(place: Path, make: Callable[[Path], Artifact]) -> tuple[Artifact, float]:
    """An artifact, and the seconds of the processor that it took when it was made."""
    clock = place.with_name(f"{place.name}.seconds")
    if not clock.is_file():
        shutil.rmtree(place, ignore_errors=True)  # its time counts
        began = time.process_time()
        make(place)
        clock.write_text(str(time.process_time() - began))
    return Artifact.open(place), float(clock.read_text())


def saved(model: DualEncoder, like: Artifact, path: Path) -> Artifact:
    with Artifact.create(path, kind=Kind.CHECKPOINT, stage="convert", key=path.name) as draft:
        draft.inherit(like, *FOLDER_FILES)
        draft.model = model.config
        save_checkpoint(model, draft.path)
    return Artifact.open(path)


def sizes(tower: ImageConfig) -> str:
    return " ".join(f"{heads}:{mlp}" for heads, mlp in zip(tower.heads, tower.mlp, strict=True))


def shown(scores: Mapping[str, float]) -> str:
    return " | ".join(f"{100 * scores[name]:.1f}" for name in ("r10", "agrees", "flips"))


def raced(teacher: Artifact, even: Artifact, pruned: Artifact) -> None:
    """How fast both are, as ONNX Runtime and OpenVINO run them."""
    for backend in get_args(Backend)[:2]:
        for precision in ("fp32", "int8"):
            with tempfile.TemporaryDirectory() as folder:
                towers = [even.model.image, pruned.model.image]
                probes = write_probes(teacher.model, towers, Path(folder) / "probes", precision)
                first, second = (Subject(probes, graph, backend, 1) for graph in probes.manifest.graphs)
                ratio = race(first, second, 1, 10.0)[1]
            interval = f"{ratio.low:.2f} to {ratio.high:.2f}"
            print(f"| pruned is {ratio.speedup:.2f} ({interval}) times as fast, {backend} {precision} |", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=tuple(DATA), default="drawings")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.25, 0.5])
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--views", type=int, default=4)
    parser.add_argument("--work", type=Path)
    asked = parser.parse_args()
    if asked.data == "photos" and not PHOTOS.is_dir():
        print(f"skipped: the development data is not at {PHOTOS}")
        return 0
    with tempfile.TemporaryDirectory() as temporary:
        work: Path = asked.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        teacher, embeddings = prepared(work, asked.data, asked.views)
        score = Scorer(teacher, asked.data)
        print(f"{asked.data}, validation; teacher {shown(score(model_of(teacher)))}")
        print("| start | share of the MACs | steps | CPU-s | R@10 | agrees | flips |\n|---|--:|--:|--:|--:|--:|--:|")
        for share in asked.shares:
            compared(work, teacher, embeddings, score, share, asked.seeds, asked.steps, asked.data)
    return 0


def compared(
    work: Path,
    teacher: Artifact,
    embeddings: Artifact,
    score: Scorer,
    share: float,
    seeds: Sequence[int],
    steps: int,
    data: str,
) -> None:
    cut = {"target_macs": share, "towers": ["image"]}

    def even(fit: int) -> Callable[[Path], Artifact]:
        return lambda path: saved(evenly_spaced(teacher, share, fit, embeddings, DATA[data][0]), teacher, path)

    made = {
        "evenly spaced": timed(work / f"even-{share}", even(0)),
        "evenly spaced, fitted": timed(work / f"fitted-{data}-{share}", even(FIT)),
        "pruned": timed(
            work / f"start-{data}-{share}-keep",
            lambda path: standalone.prune(teacher.path, path, cut, embeddings=embeddings.path),
        ),
    }
    full = teacher.model.image.macs(teacher.model.embed_dim)
    for name, (start, spent) in made.items():
        macs = start.model.image.macs(teacher.model.embed_dim) / full
        label = f"{name} ({sizes(start.model.image)})"
        print(f"| {label} | {macs:.3f} | 0 | {spent:.0f} | {shown(score(model_of(start)))} |", flush=True)
    raced(teacher, made["evenly spaced"][0], made["pruned"][0])
    a_step = 0.0
    for seed in seeds:
        for name, (start, took) in made.items():
            own = max(1, steps - round(took / a_step)) if a_step else steps
            given = {**TRAINED, "text": "keep", "optimizer.steps": own, "seed": seed}
            with tempfile.TemporaryDirectory(dir=work) as folder:
                began = time.process_time()
                student = standalone.distill(
                    Path(folder) / "student", given, embeddings=embeddings.path, checkpoint=start.path
                )
                spent = time.process_time() - began
                a_step = a_step or spent / steps
                print(
                    f"| {name}, seed {seed} | | {own} | {spent:.0f} |", shown(score(model_of(student))), "|", flush=True
                )


if __name__ == "__main__":
    sys.exit(main())
