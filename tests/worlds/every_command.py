"""Every command with input that it takes, as small as can be: what signals, full disks and stop watches are tried on.

The input is sixty squares, a teacher that finds each of them by its caption, and a run folder with what its stages
make. `WORDS` has the words of every command but those that need a host; `{out}` is where it writes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from matched_clip import PREPROCESSING, write_matched, write_squares
from PIL import Image
from shards import picture, write_tar

from mmcompress.huggingface import dual_encoder_from_checkpoint, save_checkpoint
from mmcompress.processing import save_preprocessing

FEW = ("--optimizer-steps", "4", "--optimizer-batch", "10")
ANY = ("--samples", "20", "--batch", "10", "--max-drop", "1.0", "--max-flips", "1.0")
ORT = ("--backend", "onnxruntime")
QUICK = ("--set", "priority=false", "--set", "ceiling=false")
SOON = ("--rounds", "4", "--seconds", "0.02", "--batches", "1", *QUICK)
WORDS: dict[str, tuple[str, ...]] = {
    "run": ("{world}/recipe.toml", "--out", "{out}"),
    "train": ("{world}/train.toml", "--out", "{out}"),
    "embed": ("--teacher", "{world}/teacher", "--data", "{data}", "--views", "2", "--out", "{out}"),
    "import-embeddings": ("--data", "{world}/reinforced", "--size", "32", "--out", "{out}"),
    "ensemble": ("{run}/embed", "{run}/again", "--out", "{out}"),
    "convert": ("{world}/teacher", "--out", "{out}"),
    "distill": (
        *(
            "--teacher",
            "{world}/teacher",
            "--data",
            "{train}",
            "--student",
            "inherit:0.8",
        ),
        *("--embeddings", "{run}/embed", *FEW, "--out", "{out}"),
    ),
    "size": ("--target-ms", "50", *ORT, "--threads", "1", "--image-size", "32", "--out", "{out}"),
    "finetune": ("{run}/convert", "--data", "{data}", *FEW, "--out", "{out}"),
    "prune": (
        *("{run}/distill", "--embeddings", "{run}/embed", "--heads", "0.5", "--mlp-multiple", "8", "--samples", "20"),
        *("--batch", "10", "--out", "{out}"),
    ),
    "quantize": ("{run}/convert", "--data", "{data}", *ANY, "--out", "{out}"),
    "verdict": (
        *("{run}/quantize", *ORT, "--seconds", "0.1", "--max-drop", "1.0", "--max-flips", "1.0", "--out", "{out}"),
    ),
    "shrink": (
        *("{world}/teacher", "--data", "{train}", "--validation", "part:0-4/10:{data}", "--test", "{data}", *ORT),
        *("--out", "{out}"),
    ),
    "qat": ("{run}/quantize", *FEW, "--out", "{out}"),
    "export": ("{run}/quantize", "--out", "{out}"),
    "build": ("{run}/int8", "--targets", "sm89", "--out", "{out}"),
    "bench": ("{run}/fp32", "{run}/int8", "--backends", "onnxruntime", *SOON, "--out", "{out}"),
    "block-costs": (*ORT, "--threads", "1", "--image-size", "32", "--out", "{out}"),
    "compare": ("{run}/fp32", "{run}/int8", *ORT, "--seconds", "2"),
    "drift": ("{run}/fp32", "{run}/int8", "--data", "{data}", "--out", "{out}"),
    "bisect": ("{run}/fp32", "{run}/int8", "--data", "{data}", "--out", "{out}"),
    "report": ("{run}", "--out", "{out}"),
    "check": ("{run}/report", "--max", "p99_ms=1000"),
    "pointing": ("{run}/int8", "--boxes", "{world}/boxes.tsv"),
    "classify": ("{run}/int8", "{world}/square.png", "--labels", "w1,w2"),
    "index": ("{run}/int8", "--images", "{data}", "--out", "{out}"),
    "search": ("{run}/int8", "w1 w11", "--images", "{world}/images"),
    "explain": ("{run}/int8", "{world}/square.png", "w1 w11", "--out", "{out}.png"),
    "split": (
        *("{run}/fp32", "--device", "a=here,b=here", "--bandwidth", "20Mbps", *ORT, "--threads", "1"),
        *("--precision", "fp32", "--out", "{out}"),
    ),
    "inspect": ("{run}/int8",),
    "pack": ("{run}/int8", "--out", "{out}"),
    "unpack": ("{world}/int8.mmc", "--out", "{out}"),
    "page": ("demo:teacher", "--data", "demo:val", "--out", "{out}"),
    "triton": ("{run}/fp32", "--out", "{out}"),
    "doctor": (),
    "data index": ("{data}",),
    "data pack": ("{world}/images", "--out", "{out}"),
    "data stats": ("{data}",),
    "data dedupe": ("{train}", "--embeddings", "{run}/embed", "--out", "{out}"),
    "data filter": (
        "{train}",
        "--embeddings",
        "{run}/embed",
        "--min-similarity",
        "0",
        "--out",
        "{out}",
    ),
}
NO_WORDS = {"remote doctor", "remote build", "remote bench", "remote drift"}
"""They need a host that answers ssh."""
_ASKED = "samples = 20\nbatch = 10\nmax_drop = 1.0\nmax_flips = 1.0"
_STEPS = "optimizer = {steps = 4, batch = 10}"
STAGES = (
    ("baseline", 'name = "teacher"'),
    ("embed", "views = 2\nbatch = 8"),
    ("embed", 'name = "again"\nviews = 2\nbatch = 8'),
    ("distill", f'embeddings = "embed"\n{_STEPS}'),
    ("convert", ""),
    ("quantize", f'checkpoint = "convert"\n{_ASKED}'),
    ("export", 'name = "fp32"\ncheckpoint = "quantize"\nprecisions = ["fp32"]'),
    ("export", 'name = "int8"\ncheckpoint = "quantize"\nprecisions = ["int8"]'),
    (
        "bench",
        'backends = ["onnxruntime"]\nbatches = [1]\nrounds = 4\nseconds = 0.02\npriority = false\nceiling = false',
    ),
    ("drift", ""),
    ("report", ""),
)


def words(command: str, world: Path, out: Path) -> list[str]:
    """The command with all of its words."""
    return [*command.split(), *(word.format(**named_places(world, out)) for word in WORDS[command])]


def named_places(world: Path, out: Path) -> dict[str, object]:
    """What stands in braces in words."""
    data = world / "squares-00000.tar"
    return {"world": world, "run": world / "run", "data": data, "train": f"part:5-9/10:{data}", "out": out}


@contextmanager
def workplace(folder: Path | None) -> Iterator[tuple[Path, Path]]:
    """A folder to work in and the world in it, which is made where it is not there yet: the one given, or one that goes
    afterwards."""
    with ExitStack() as stack:
        folder = folder or Path(stack.enter_context(TemporaryDirectory()))
        if not (folder / "world/int8.mmc").exists():
            write_world(folder / "world")
        yield folder, folder / "world"


def write_world(world: Path) -> Path:
    """The folder, with what `WORDS` names in it."""
    world.mkdir(parents=True, exist_ok=True)
    data = write_squares(world)
    teacher = world / "teacher"
    teacher.mkdir()
    made = write_matched(teacher, data)
    save_checkpoint(dual_encoder_from_checkpoint(made.path, made.model), teacher)
    save_preprocessing(PREPROCESSING, teacher)
    _write_images(world)
    (world / "reinforced").mkdir()
    write_reinforced(world / "reinforced/00000000.tar")
    _write_recipes(world, data, teacher)
    ask(world, "run", str(world / "recipe.toml"), "--out", str(world / "run"))
    ask(world, "pack", str(world / "run/int8"), "--out", str(world / "int8.mmc"))
    return world


def ask(world: Path, *asked: str) -> None:
    """Run a command to its end; RuntimeError with what it said where that is not 0."""
    here = os.environ | {"MMCOMPRESS_CACHE": str(world / "cache"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "mmcompress", *asked]
    done = subprocess.run(command, capture_output=True, text=True, env=here)
    if done.returncode:
        raise RuntimeError(f"{' '.join(asked)} ended with {done.returncode}:\n{done.stderr[-2000:]}")


def _write_recipes(world: Path, data: Path, teacher: Path) -> None:
    head = f'[data]\ntrain = "part:5-9/10:{data}"\nvalidation = "part:0-4/10:{data}"\ntest = "{data}"\n'
    head += f'[teacher]\nsource = "{teacher}"\n[student]\nsource = "inherit:0.8"\n'
    stages = "\n".join(f'[[stage]]\nrun = "{stage}"\n{keys}' for stage, keys in STAGES)
    (world / "recipe.toml").write_text(head + stages + "\n")
    student = 'student = {source = "vit-t8-64", image_size = 32}'
    (world / "train.toml").write_text(f'[data]\ntrain = "{data}"\n[[stage]]\nrun = "train"\n{student}\n{_STEPS}\n')


def _write_images(world: Path) -> None:
    images = world / "images"
    images.mkdir()
    lines = []
    for n in range(12):
        (images / f"{n:02d}.png").write_bytes(picture(n, (40, 34)))
        lines.append(f"{n:02d}.png\tw1 w{11 + n % 8}")
    (images / "captions.tsv").write_text("\n".join(["image\tcaption", *lines]) + "\n")
    Image.new("RGB", (64, 64), (32, 90, 64)).save(world / "square.png")
    box = "square.png\tw1 w11\t0\t0\t32\t32"
    (world / "boxes.tsv").write_text(f"image\ttext\tleft\ttop\tright\tbottom\n{box}\n")


def write_reinforced(shard: Path) -> None:
    """Samples in DataCompDR's layout, with rows that no model made."""
    noise = np.random.default_rng(0)
    members: list[tuple[str, bytes]] = []
    for n in range(8):
        path = shard.with_suffix(".npz")
        rows = {name: noise.normal(size=(2, 32)).astype(np.float32) for name in ("image_emb", "text_emb")}
        np.savez_compressed(path, **rows)
        views = [[[n, 1, 20 + view, 25], [[view + 3, 3.5]]] for view in range(2)]
        parts = {
            "jpg": picture(n, (40, 34)),
            "txt": f"w{n}".encode(),
            "syn.json": json.dumps({"syn_text": [f"w{n} w1"]}).encode(),
            "paug.json": json.dumps({"param_aug": json.dumps(views)}).encode(),
            "npz": path.read_bytes(),
            "json": json.dumps({"uid": f"{n:032x}", "sha256": "0" * 64}).encode(),
        }
        path.unlink()
        members += [(f"{n:032x}.{suffix}", content) for suffix, content in parts.items()]
    write_tar(shard, members)
