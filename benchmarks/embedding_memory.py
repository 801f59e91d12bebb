"""What `embed` and `distill` hold, and what a shard more costs, against the number of pairs.

python benchmarks/embedding_memory.py [--pairs 1000 10000 30000 100000] [--a-shard 1000] [--json]

Pairs are JPEGs of 64 pixels with a sentence, the teacher is a CLIP of two narrow blocks with random weights, the
student half of it, so that next to nothing but the data could fill the memory. `distill` sees every pair once. Each
figure is of a command in a process of its own: the peak of its resident memory, mapped files included, and the seconds
of the processor, user and system, with the start of Python. Two buffers fill up first: 16,384 samples are shuffled, and
256 MB of decoded images are kept, 21,845 of this size.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

SIDE = 64
WORDS = [f"{colour} {thing} number {n}" for colour in ("red", "blue") for thing in ("cup", "tree") for n in range(100)]


def write_shard(path: Path, number: int, pairs: int) -> None:
    """A tar as webdataset's writer makes it, of 64 pictures that are shared by all shards."""
    noise = np.random.default_rng(0)
    images = []
    for _ in range(64):
        buffer = io.BytesIO()
        coarse = Image.fromarray(noise.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(buffer, "JPEG")
        images.append(buffer.getvalue())
    with tarfile.open(path, "w") as archive:
        for n in range(pairs):
            caption = f"{WORDS[n % len(WORDS)]} of shard {number}".encode()
            for suffix, content in (("jpg", images[n % 64]), ("txt", caption)):
                info = tarfile.TarInfo(f"{n:08d}.{suffix}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))


def write_teacher(folder: Path) -> Path:
    from mmcompress.architecture import DualEncoderConfig
    from mmcompress.compress.train.vocabulary import save_tokenizer, tokenizer_from_captions
    from mmcompress.huggingface import save_checkpoint
    from mmcompress.manifest import Preprocessing
    from mmcompress.model import DualEncoder, initialize
    from mmcompress.processing import save_preprocessing

    folder.mkdir()
    text = save_tokenizer(tokenizer_from_captions(WORDS, 320), folder, 16)
    tower = {"width": 64, "head_dim": 16, "heads": (4,) * 2, "mlp": (128,) * 2}
    ends = {"eos_token_id": text.eos_token_id, "pad_token_id": text.pad_token_id}
    config = DualEncoderConfig.model_validate(
        {
            "embed_dim": 256,
            "image": {**tower, "image_size": SIDE, "patch": 16},
            "text": {**tower, "vocab": 320, "context": text.context, **ends},
        }
    )
    save_checkpoint(initialize(DualEncoder(config), 0), folder)
    save_preprocessing(Preprocessing(size=SIDE, resize=SIDE, mean=(0.5,) * 3, std=(0.5,) * 3), folder)
    return folder


def measured(cache: Path, *words: object) -> tuple[float, float]:
    """Peak of the resident memory in MB, and seconds of the processor, of a command of mmcompress."""
    environment = {**os.environ, "MMCOMPRESS_CACHE": str(cache)}
    command = [sys.executable, "-m", "mmcompress", *map(str, words)]
    with tempfile.TemporaryFile() as said, subprocess.Popen(command, env=environment, stdout=said, stderr=said) as run:
        _, status, used = os.wait4(run.pid, 0)
        run.returncode = os.waitstatus_to_exitcode(status)
        if run.returncode:
            said.seek(0)
            raise SystemExit(said.read().decode())
    return used.ru_maxrss / 1024, used.ru_utime + used.ru_stime


def row(folder: Path, teacher: Path, pairs: int, a_shard: int) -> dict[str, float]:
    """All figures of one size."""
    data, cache = folder / f"data-{pairs}", folder / f"cache-{pairs}"
    data.mkdir()
    shards = max(1, pairs // a_shard)
    for number in range(shards):
        write_shard(data / f"{number:05d}.tar", number, pairs // shards)
    embed = ("embed", "--teacher", teacher, "--data", data, "--out", folder / f"e-{pairs}", "--batch", 256)
    of_embed = measured(cache, *embed)
    once = ("--optimizer-epochs", 1, "--optimizer-batch", 250, "--optimizer-save-minutes", 60)
    student = ("--student", "inherit:0.5", "--embeddings", folder / f"e-{pairs}", "--data", data)
    of_distill = measured(cache, "distill", "--out", folder / f"s-{pairs}", *student, *once)
    again = measured(cache, *embed)
    write_shard(data / f"{shards:05d}.tar", shards, pairs // shards)
    grown = measured(cache, *embed)
    return {
        "pairs": pairs,
        "shards": shards,
        "embeddings, MB": sum(path.stat().st_size for path in (folder / f"e-{pairs}").rglob("*")) / 1e6,
        "embed: MB": of_embed[0],
        "distill: MB": of_distill[0],
        "embed: s": of_embed[1],
        "embed again: s": again[1],
        "embed a shard more: s": grown[1],
        "distill: s": of_distill[1],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, nargs="+", default=[1000, 10_000, 30_000, 100_000])
    parser.add_argument("--a-shard", type=int, default=1000)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        teacher = write_teacher(Path(folder) / "teacher")
        rows = [row(Path(folder), teacher, pairs, asked.a_shard) for pairs in asked.pairs]
    if asked.json:
        print(json.dumps(rows))
        return 0
    print("| " + " | ".join(rows[0]) + " |")
    print("|" + "--:|" * len(rows[0]))
    for figures in rows:
        print("| " + " | ".join(f"{v:,}" if isinstance(v, int) else f"{v:.1f}" for v in figures.values()) + " |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
