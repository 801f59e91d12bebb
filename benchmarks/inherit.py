"""Where an inherited student starts and ends: pruned by what harms least, against evenly spaced blocks and norms.

    python benchmarks/inherit.py [--data drawings|photos] [--shares 0.25 0.5] [--seeds 0 1 2] [--steps 300] [--work DIR]

The first is `prune --target-macs F` of the teacher. The second is TinyCLIP's manner: evenly spaced blocks and in each
the heads and MLP units of the largest weight norm, fitted to nothing. Both are of the image tower at the same share of
its MACs, and a race on a backend says how fast they are: many thin blocks take longer than few thick ones.
Then both are trained on the same samples with the same schedule; ours has fewer steps, by the processor time that its
start took. Scores are those of `objectives.py`, which shares teacher, embeddings and validation images with this.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import get_args

import torch
from objectives import DATA, PHOTOS, TRAINED, Scorer, model_of, opened, prepared

from mmcompress.architecture import ImageConfig
from mmcompress.artifact import Artifact
from mmcompress.compress.prune.importance import magnitudes
from mmcompress.compress.train.student import copy_block
from mmcompress.config import Backend
from mmcompress.export.sized import write_probes
from mmcompress.huggingface import FOLDER_FILES, save_checkpoint
from mmcompress.manifest import Kind
from mmcompress.measure.compare import race
from mmcompress.measure.subjects import Subject
from mmcompress.model import DualEncoder
from mmcompress.pipeline import standalone
from mmcompress.transformer import Block


def share_of(tower: ImageConfig, share: float, embed_dim: int) -> ImageConfig:
    """The widest equal blocks within a share of the MACs, as many as the root of the share says."""
    for blocks in range(max(1, round(tower.depth * share**0.5)), 0, -1):
        for heads in range(tower.heads[0], 0, -1):
            units = tower.mlp[0] * heads // tower.heads[0]
            for mlp in range(units // 32 * 32, max(31, units // 2), -32):
                smaller = tower.model_copy(update={"heads": (heads,) * blocks, "mlp": (mlp,) * blocks})
                if smaller.macs(embed_dim) <= share * tower.macs(embed_dim):
                    return smaller
    raise ValueError(f"nothing is as small as {share}")


def largest(scores: torch.Tensor, count: int) -> list[int]:
    return sorted(torch.argsort(scores, descending=True, stable=True)[:count].tolist())


def evenly_spaced(teacher: DualEncoder, share: float) -> DualEncoder:
    """Blocks from the first to the last, and of each the units of the largest norm."""
    tower = share_of(teacher.config.image, share, teacher.config.embed_dim)
    student = DualEncoder(teacher.config.model_copy(update={"image": tower}))
    state = teacher.state_dict()
    own = {name: value for name, value in student.state_dict().items() if name.startswith("image.blocks.")}
    student.load_state_dict({**{name: state[name] for name in student.state_dict() if name not in own}, **own})
    norms, last = magnitudes(teacher), len(teacher.image.blocks) - 1
    for index, block in enumerate(student.image.blocks):
        chosen = round(index * last / (tower.depth - 1)) if tower.depth > 1 else last
        source = teacher.image.blocks[chosen]
        assert isinstance(block, Block) and isinstance(source, Block)
        name = f"image.blocks.{chosen}"
        heads = largest(norms[f"{name}.out"], block.heads)
        copy_block(block, source, heads, largest(norms[f"{name}.fc2"], block.fc1.out_features))
    return student


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
    place = work / f"start-{data}-{share}-keep"
    clock = place.with_name(f"{place.name}.seconds")
    if not clock.is_file():
        shutil.rmtree(place, ignore_errors=True)  # its time counts
        began = time.process_time()
        standalone.prune(teacher.path, place, cut, embeddings=embeddings.path)
        clock.write_text(str(time.process_time() - began))
    ours, took = Artifact.open(place), float(clock.read_text())
    even = opened(work / f"even-{share}", lambda path: saved(evenly_spaced(model_of(teacher), share), teacher, path))
    full = teacher.model.image.macs(teacher.model.embed_dim)
    for name, start, spent in (("evenly spaced", even, 0.0), ("pruned", ours, took)):
        macs = start.model.image.macs(teacher.model.embed_dim) / full
        label = f"{name} ({sizes(start.model.image)})"
        print(f"| {label} | {macs:.3f} | 0 | {spent:.0f} | {shown(score(model_of(start)))} |", flush=True)
    raced(teacher, even, ours)
    a_step = 0.0
    for seed in seeds:
        for name, start in (("evenly spaced", even), ("pruned", ours)):
            fewer = round(took / a_step) if name == "pruned" else 0
            given = {**TRAINED, "text": "keep", "optimizer.steps": max(1, steps - fewer), "seed": seed}
            with tempfile.TemporaryDirectory(dir=work) as folder:
                began = time.process_time()
                made = standalone.distill(
                    Path(folder) / "student", given, embeddings=embeddings.path, checkpoint=start.path
                )
                spent = time.process_time() - began
                row = f"| {name}, seed {seed} | | {max(1, steps - fewer)} | {spent:.0f} |"
                print(row, shown(score(model_of(made))), "|", flush=True)
                a_step = spent / steps if name == "evenly spaced" else a_step


if __name__ == "__main__":
    sys.exit(main())
