"""INT8 of a ViT-B/32 of the true dimensions on 512 photos: minutes and memory, beside NNCF on the same graphs.

python benchmarks/full_size_int8.py [--photos 512] [--rounds 1]

Ours is the whole command, `mmcompress quantize FOLDER --data photos.tar`: it reads the Hugging Face folder, decodes the
photos, tries every technique, ranks the Linears and judges the result against the budget. NNCF gets our FP32 graphs and
the samples decoded and tokenized, and quantizes one tower after the other, which is in its favour. Random weights, so
only time and memory mean something. Photos come from the Flickr8k sample of the development data, NNCF from the
environment that `make bench` makes; where one is absent the script says so and ends.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from full_size import write_pairs, write_teacher
from int8_peers import padded

PHOTOS = Path(__file__).resolve().parents[2] / "shared" / "data" / "flickr8k-160" / "train-00000.tar"
NNCF = Path(".venv-peers/bin/python")
IMAGE = {"width": 768, "head_dim": 64, "heads": (12,) * 12, "mlp": (3072,) * 12, "image_size": 224, "patch": 32}
TEXT = {"width": 512, "head_dim": 64, "heads": (8,) * 12, "mlp": (2048,) * 12}


def measured(command: list[str]) -> tuple[float, float]:
    """Seconds of wall clock and GiB at the peak."""
    code = (
        "import resource,subprocess,sys,time\n"
        "start=time.monotonic()\n"
        "code=subprocess.run(sys.argv[1:],stdout=subprocess.DEVNULL).returncode\n"
        "print(time.monotonic()-start,resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss/2**20)\n"
        "sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code, *command], check=True, stdout=subprocess.PIPE, text=True)
    seconds, gib = map(float, done.stdout.split())
    return seconds, gib


def peer_samples(fp32: Path, data: Path, photos: int, folder: Path) -> None:
    """What NNCF is fed, one file a tower."""
    from mmcompress.artifact import Artifact
    from mmcompress.compress.int8.samples import plain_pairs
    from mmcompress.config import DataConfig, QuantizeConfig

    artifact = Artifact.open(fp32)
    config = QuantizeConfig(data=DataConfig(train=str(data)), samples=photos)
    shown = list(plain_pairs(artifact, str(data), config))
    assert artifact.tokenizer is not None
    context = artifact.tokenizer.context
    np.savez(folder / "image.npz", pixels=np.concatenate([one.pixels.numpy() for one in shown]))
    tokens = np.concatenate([padded(one.tokens.numpy(), context, artifact.tokenizer) for one in shown])
    np.savez(folder / "text.npz", tokens=tokens)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=1)
    asked = parser.parse_args()
    if not PHOTOS.is_file() or not NNCF.is_file():
        print(f"skipped: the development data is not at {PHOTOS}, or NNCF is not at {NNCF}")
        return 0
    ours, theirs = [], []
    mmcompress = [sys.executable, "-m", "mmcompress"]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        captions = write_pairs(folder / "photos.tar", PHOTOS, asked.photos)
        (folder / "teacher").mkdir()
        write_teacher(folder / "teacher", captions, IMAGE, TEXT, embed_dim=512)
        for number in range(asked.rounds):
            quantize = ["quantize", str(folder / "teacher"), "--data", str(folder / "photos.tar")]
            ours.append(measured([*mmcompress, *quantize, "--out", str(folder / f"int8-{number}")]))
            if number == 0:
                export = ["export", str(folder / "int8-0-checkpoint"), "--precision", "fp32"]
                subprocess.run([*mmcompress, *export, "--out", str(folder / "fp32")], check=True)
                peer_samples(folder / "fp32", folder / "photos.tar", asked.photos, folder)
            peer = [str(NNCF), str(Path(__file__).with_name("int8_peers.py")), "--peer", "nncf-transformer"]
            files = [
                [str(folder / "fp32" / f"{tower}-fp32.onnx"), str(folder / f"{tower}.npz"), str(folder / tower)]
                for tower in ("image", "text")
            ]
            parts = [measured([*peer, *of_tower]) for of_tower in files]
            theirs.append((sum(seconds for seconds, _ in parts), max(gib for _, gib in parts)))
    print(f"{'':14} {'minutes':>8} {'peak GiB':>9}")
    for name, figures in (("mmcompress", ours), ("NNCF", theirs)):
        minutes, gib = (statistics.median(column) for column in zip(*figures, strict=True))
        print(f"{name:14} {minutes / 60:8.2f} {gib:9.2f}")
    ratios = sorted(a / b for (a, _), (b, _) in zip(ours, theirs, strict=True))
    print(f"ours / NNCF in time: {statistics.median(ratios):.2f} [{ratios[0]:.2f}, {ratios[-1]:.2f}]")
    return 0


if __name__ == "__main__":
    sys.exit(main())
