"""What the guides tell a reader to type, and a folder that has what they suppose: shards, photos, teachers from a hub.

The data are the drawings that ship, the teacher that ships lies in the hub's cache under the names of the teachers that
the guides take. What a guide leaves to its reader is made shorter by `SHORTER`: steps, rounds and image sizes.
"""

from __future__ import annotations

import io
import json
import re
import shutil
import tarfile
from collections.abc import Iterable
from itertools import cycle, islice
from pathlib import Path

from every_command import write_reinforced
from PIL import Image
from safetensors.numpy import load_file, save_file

from mmcompress.packaged import packaged
from mmcompress.teachers import ALIASES

Sample = dict[str, bytes]
"""The members of a sample by their suffix."""

PHOTOS = 220
SHARDS = {"cc3m": (332, 5, 3), "cc12m": (1243, 5, 1), "shards": (1000, 3, 1)}
"""Folder, how many shards, how many digits their names have, and samples of each."""
_TRAINED = ("--optimizer-steps", "2", "--optimizer-batch", "16")
_ROUNDS = {"rounds": "4", "seconds": "0.02", "priority": "false", "ceiling": "false"}
SHORTER: dict[str, tuple[str, ...]] = {
    "distill": _TRAINED,
    "finetune": _TRAINED,
    "bench": tuple(f"--set {key}={value}" for key, value in _ROUNDS.items()),
    "shrink": tuple(f"--set bench.{key}={value}" for key, value in _ROUNDS.items()),
    "verdict": ("--seconds", "0.3"),
}
"""What is added to a command."""
LEARN = (
    "mmcompress distill --teacher vit-l14 --student vit-s16 --data 'cc3m/{00000..00331}.tar' --out student",
    "mmcompress distill --from pruned --out recovered",
)
LONGER = ("--optimizer-steps", "60", "--optimizer-batch", "64")
"""What README's students learn, since `verdict` has none of a model at chance."""
SMALLER = {
    "--student vit-s16": "--set student.image_size=64",
    "compare fp32 int8": "--seconds 2",
    "--target-latency 3ms": "--student-image-size 64",
}
"""What is added where a command has these words."""
FIRST = {"box=times.json": "mmcompress split int8 --device box=here --out times && cp times/times.json ."}
"""What was done on another device before a command with these words."""
INSTEAD = {"--nproc_per_node 8": "--nproc_per_node 2"}
"""Other words for a machine of two cores."""
ELSEWHERE = (
    "mmcompress remote",
    "--backend tensorrt",
    "--backends tensorrt",
    "drift onnx engines",
    "timm/",
    "s3://",
    "…",
    "/shared/",
    "tritonserver",
    "--target sm90",
)
"""A command with these needs a host, a GPU or a network."""


def commands(page: Path) -> list[str]:
    """The commands of a page's blocks, lines that go on joined, without comments."""
    blocks = re.findall(r"^```(?:yaml)?\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    whole = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    lines = [re.sub(r"^\s*- (run: )?|\s+# .*", "", line) for line in whole]
    return [" ".join(line.split()) for line in lines if line.startswith(("mmcompress ", "torchrun "))]


def shorter(command: str) -> str:
    """The command with what makes it short."""
    for words, others in INSTEAD.items():
        command = command.replace(words, others)
    stage = re.search(r"mmcompress (\S+)", command)
    added = [more for words, more in SMALLER.items() if words in command]
    if stage and "--pilot" not in command:  # which chooses its steps itself
        added += LONGER if command in LEARN else SHORTER.get(stage[1], ())
    first = [f"{before} &&" for words, before in FIRST.items() if words in command]
    return " ".join([*first, command, *added])


def prepared(command: str, folder: Path) -> None:
    """What a command takes that was made elsewhere: on another machine, yesterday, or of another model."""
    if "main/report.json" in command:
        shutil.copytree(folder / "report", folder / "main", dirs_exist_ok=True)
    if "jetson/bench" in command:
        shutil.copytree(folder / "bench", folder / "jetson/bench", dirs_exist_ok=True)
        for name in ("teacher", "fp32", "int8", "bench"):
            shutil.copytree(folder / name, folder / "runs/mine" / name, dirs_exist_ok=True)
    if "int8-new" in command:
        shutil.copytree(folder / "int8", folder / "int8-new", dirs_exist_ok=True)
    if "data pack" in command:
        shutil.rmtree(folder / "shards", ignore_errors=True)
    if "import-embeddings" in command:
        (folder / "dr").mkdir()
        for number in range(10):
            write_reinforced(folder / f"dr/{number:08d}.tar")
    if "keys:" in command:
        _write_keyed(folder / "shards")


def write_guides(folder: Path) -> Path:
    """The folder, and beside it the hub's cache (HF_HOME), whose path is the answer."""
    folder.mkdir()
    train, val = list(_samples("demo:train")), list(_samples("demo:val"))
    for name, (count, digits, size) in SHARDS.items():
        (folder / name).mkdir()
        samples = cycle(train)
        for number in range(count):
            _write_shard(folder / name / f"{number:0{digits}d}.tar", list(islice(samples, size)))
    for name, count in (("test", 4), ("val", 1)):
        (folder / name).mkdir()
        for number in range(count):
            _write_shard(folder / name / f"{number:05d}.tar", val[number::count])
    shutil.copy(folder / "val/00000.tar", folder / "val.tar")
    _write_folder(folder / "photos", train[:PHOTOS])
    _write_folder(folder / "folder", train[:40])
    _write_folder(folder / "cards", train[:PHOTOS])
    _write_folder(folder / "cards-test", val)
    for name in ("photo.png", "photo.jpg", "street.jpg"):
        Image.open(folder / "photos/000005.jpg").resize((640, 640)).save(folder / name)
    captions = [_caption(sample) for sample in train[:PHOTOS]]
    (folder / "names.txt").write_text("cat\ndog\nred panda\n")
    (folder / "labels.txt").write_text("cat\ndog\nred panda\n")
    (folder / "captions.txt").write_text("\n".join(captions) + "\n")
    (folder / "queries.txt").write_text("\n".join(captions[:50]) + "\n")
    boxes = [("image", "text", "left", "top", "right", "bottom"), ("street.jpg", "a red car", 120, 310, 400, 520)]
    (folder / "boxes.tsv").write_text("".join("\t".join(map(str, row)) + "\n" for row in boxes))
    return _write_hub(folder.parent / "hub")


def _samples(spec: str) -> Iterable[Sample]:
    for path in sorted(packaged(spec).parent.glob(packaged(spec).name)):
        sample: Sample = {}
        last = ""
        with tarfile.open(path) as tar:
            for member in tar:
                key, _, suffix = member.name.partition(".")
                if key != last and sample:
                    yield sample
                    sample = {}
                stream = tar.extractfile(member)
                assert stream is not None
                sample[suffix], last = stream.read(), key
        yield sample


def _caption(sample: Sample) -> str:
    return sample["txt"].decode() if "txt" in sample else str(json.loads(sample["json"])["caption"])


def _write_shard(path: Path, samples: list[Sample]) -> None:
    with tarfile.open(path, "w") as tar:
        for number, sample in enumerate(samples):
            for suffix, content in sample.items():
                member = tarfile.TarInfo(f"{path.stem}{number:04d}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def _write_keyed(folder: Path) -> None:
    """Shards whose images and captions have names that nobody knows."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    keyed = [{"image": one["webp"], "caption": _caption(one).encode()} for one in islice(_samples("demo:train"), 20)]
    _write_shard(folder / "00000.tar", keyed)


def _write_folder(folder: Path, samples: list[Sample]) -> None:
    """Images with a `captions.tsv`."""
    folder.mkdir()
    lines = ["image\tcaption"]
    for number, sample in enumerate(samples):
        name = f"{number:06d}.jpg"
        Image.open(io.BytesIO(sample["webp"])).convert("RGB").save(folder / name)
        lines.append(f"{name}\t{_caption(sample)}")
    (folder / "captions.tsv").write_text("\n".join(lines) + "\n")


def _write_hub(folder: Path) -> Path:
    """The teacher that ships as every teacher that the guides name, where the hub's client keeps what it fetched; a
    ViT-B/32 embeds into fewer dimensions."""
    for alias in ("vit-b32", "vit-b16", "vit-l14"):
        place = folder / "hub" / f"models--{ALIASES[alias].replace('/', '--')}"
        shutil.copytree(packaged("demo:teacher"), place / "snapshots/main")
        (place / "refs").mkdir()
        (place / "refs/main").write_text("main")
        if alias == "vit-b32":
            _narrow(place / "snapshots/main", 128)
    return folder


def _narrow(teacher: Path, width: int) -> None:
    """Keep the first dimensions of the shared space."""
    tensors = load_file(teacher / "model.safetensors")
    for name in ("text_projection.weight", "visual_projection.weight"):
        tensors[name] = tensors[name][:width].copy()
    save_file(tensors, teacher / "model.safetensors", metadata={"format": "pt"})
    config = teacher / "config.json"
    narrower = config.read_text().replace('"projection_dim": 256', f'"projection_dim": {width}')
    config.write_text(narrower)
