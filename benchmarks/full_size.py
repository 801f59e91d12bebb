"""The full-size path, run for real: a ViT-L/14 of the true dimensions, random weights, through `mmcompress distill`.

python benchmarks/full_size.py [--pairs 32] [--steps 4]

Downloads nothing: the teacher is a Hugging Face folder with OpenAI's sizes and random weights, so the embeddings mean
nothing and the figures are of time and memory. Photos come from the Flickr8k sample of the development data; without it
the script says so and ends.
"""

from __future__ import annotations

import argparse
import io
import json
import resource
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Mapping
from itertools import islice
from pathlib import Path

from mmcompress.artifact import Artifact
from mmcompress.data.batches import read
from mmcompress.manifest import Preprocessing

PHOTOS = Path(__file__).resolve().parents[2] / "shared" / "data" / "flickr8k-160" / "val-00000.tar"


IMAGE = {"width": 1024, "head_dim": 64, "heads": (16,) * 24, "mlp": (4096,) * 24, "image_size": 224, "patch": 14}
TEXT = {"width": 768, "head_dim": 64, "heads": (12,) * 12, "mlp": (3072,) * 12}
"""OpenAI's ViT-L/14: 428 million parameters."""


def write_teacher(
    folder: Path, captions: list[str], image: Mapping[str, object], text: Mapping[str, object], embed_dim: int
) -> None:
    """A Hugging Face folder of these sizes, with OpenAI's vocabulary size and context, and random weights."""
    from mmcompress.architecture import DualEncoderConfig
    from mmcompress.compress.train.vocabulary import save_tokenizer, tokenizer_from_captions
    from mmcompress.huggingface import save_checkpoint
    from mmcompress.model import DualEncoder, initialize
    from mmcompress.processing import save_preprocessing

    eos = save_tokenizer(tokenizer_from_captions(captions, 4096), folder, 77).eos_token_id
    sizes = {
        "embed_dim": embed_dim,
        "image": image,
        "text": {**text, "vocab": 49408, "context": 77, "eos_token_id": eos},
    }
    save_checkpoint(initialize(DualEncoder(DualEncoderConfig.model_validate(sizes)), 0), folder)
    save_preprocessing(Preprocessing(size=224, resize=224, mean=(0.48,) * 3, std=(0.27,) * 3), folder)


def write_pairs(path: Path, source: Path, pairs: int) -> list[str]:
    """The first pairs of a shard as one of their own; all of their captions."""
    captions = []
    with tarfile.open(path, "w") as shard:
        for index, sample in enumerate(islice(read(str(source)), pairs)):
            captions += sample.captions
            for kind, content in (("jpg", sample.image), ("txt", sample.captions[0].encode())):
                member = tarfile.TarInfo(f"{index:06d}.{kind}")
                member.size = len(content)
                shard.addfile(member, io.BytesIO(content))
    return captions


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=32)
    parser.add_argument("--steps", type=int, default=4)
    asked = parser.parse_args()
    if not PHOTOS.is_file():
        print(f"skipped: the development data is not at {PHOTOS}")
        return 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "teacher").mkdir()
        captions = write_pairs(folder / "photos-00000.tar", PHOTOS, asked.pairs)
        write_teacher(folder / "teacher", captions, IMAGE, TEXT, embed_dim=768)
        command = [sys.executable, "-m", "mmcompress", "distill", "--teacher", str(folder / "teacher")]
        command += [
            "--student",
            "vit-s16",
            "--data",
            str(folder / "photos-00000.tar"),
            "--out",
            str(folder / "student"),
        ]
        command += ["--set", f"optimizer.steps={asked.steps}", "--set", f"optimizer.batch={min(16, asked.pairs)}"]
        start = time.monotonic()
        subprocess.run(command, check=True)
        seconds = time.monotonic() - start
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
        student = Artifact.open(folder / "student")
        training = student.manifest.metrics["training"]
        embedding = Artifact.open(folder / "student-embeddings").manifest.metrics["embedding"]
    rows = {
        "teacher": "ViT-L/14, 428 M parameters, random weights",
        "student": f"ViT-S/16, {student.manifest.facts['params'] / 1e6:.1f} M parameters",
        "whole command, s": round(seconds, 1),
        "peak memory, GiB": round(peak / 2**30, 2),
        "teacher, pairs/s": round(embedding["images_per_s"], 2),
        "student training, pairs/s": round(training["images_per_s"], 2),
        "platform": student.manifest.environment["platform"],
    }
    print(json.dumps(rows, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
