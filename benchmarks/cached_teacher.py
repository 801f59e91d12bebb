"""What the cache saves: the same distillation, with the teacher's cached embeddings and with the teacher beside it.

python benchmarks/cached_teacher.py [--pairs 32] [--steps 4] [--batch 16] [--rounds 3] [--student vit-s16]

The teacher has the sizes of a ViT-L/14 and random weights, the student is a preset at 224 pixels. Live, the teacher
embeds the pixels and the texts of each batch before the student's step, under the same products (`inferring`) as the
cache is made with; the step itself is the same code. Rounds of the two are interleaved; samples a second are the
stage's own figure. Photos come from the Flickr8k sample of the development data.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from full_size import IMAGE, PHOTOS, TEXT, write_pairs, write_teacher

from mmcompress.compress.products import inferring
from mmcompress.compress.train import distill as stage
from mmcompress.compress.train.pairs import TrainingBatch, TrainingPairs
from mmcompress.huggingface import dual_encoder_from_hugging_face
from mmcompress.model import DualEncoder
from mmcompress.pipeline import standalone


@contextmanager
def beside(teacher: DualEncoder) -> Iterator[None]:
    """Within, every batch is embedded by the teacher before it is trained on."""
    original = stage.training_pairs

    def live(batch: TrainingBatch) -> TrainingBatch:
        with inferring():
            answers = teacher.encode_image(batch.pixels), teacher.encode_text(batch.tokens)
        return replace(batch, teacher=(answers[0].clone(), answers[1].clone()))

    def pairs(*given: Any, **named: Any) -> TrainingPairs:
        cached = original(*given, **named)
        return replace(cached, stream=lambda epoch, skip: map(live, cached.stream(epoch, skip)))

    stage.training_pairs = pairs
    try:
        yield
    finally:
        stage.training_pairs = original


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=32)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--student", default="vit-s16")
    asked = parser.parse_args()
    if not PHOTOS.is_file():
        print(f"skipped: the development data is not at {PHOTOS}")
        return 0
    rates: dict[str, list[float]] = {"cached": [], "live": []}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "teacher").mkdir()
        captions = write_pairs(folder / "photos-00000.tar", PHOTOS, asked.pairs)
        write_teacher(folder / "teacher", captions, IMAGE, TEXT, embed_dim=768)
        data = {"data.train": str(folder / "photos-00000.tar"), "teacher.source": str(folder / "teacher")}
        embeddings = standalone.embed(folder / "embeddings", data)
        teacher = dual_encoder_from_hugging_face(folder / "teacher").eval()
        settings = {
            "student.source": asked.student,
            "data.train": data["data.train"],
            "optimizer.steps": asked.steps,
            "optimizer.batch": asked.batch,
        }
        for number in range(asked.rounds):
            for name in rates:
                out = folder / f"{name}-{number}"
                if name == "live":
                    with beside(teacher):
                        made = standalone.distill(out, settings, embeddings=embeddings.path)
                else:
                    made = standalone.distill(out, settings, embeddings=embeddings.path)
                rates[name].append(made.manifest.metrics["training"]["images_per_s"])
    for name, figures in rates.items():
        print(f"{name:8} {statistics.median(figures):7.2f} samples/s  [{min(figures):.2f}, {max(figures):.2f}]")
    ratios = sorted(cached / live for cached, live in zip(rates["cached"], rates["live"], strict=True))
    print(f"cached / live: {statistics.median(ratios):.2f} [{ratios[0]:.2f}, {ratios[-1]:.2f}]")
    print(f"{asked.student} at 224 px, batch {asked.batch}, torch threads {torch.get_num_threads()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
