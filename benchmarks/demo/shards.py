"""Turn the emoji archive into the WebDataset shards that ship with the package, byte for byte the same every time.

The split is a pure function of the names, so nobody can tune it: 5% of the classes are unseen (they reach no training
shard, from no vendor), one drawing in twenty of the others is held out for validation, and the third vendor, drawn in
another style, is the test set. Images keep their original bytes. The shards are plain tars, since the bytes of a
compressed one depend on the zlib that wrote it; Git and wheels compress them anyway.

    python benchmarks/demo/shards.py [--source emoji-default-64.tgz] [--out src/mmcompress/demo] [--check]
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import json
import sys
import tarfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT.parent / "shared" / "data" / "emoji-default-64.tgz"
OUT = ROOT / "src" / "mmcompress" / "demo"
TRAIN_SHARDS = 4
TEST_VENDOR = "fluent3d"


def digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def one_in_twenty(text: str) -> bool:
    return int.from_bytes(digest(text)[:4], "big") % 20 == 0


def seen(name: str) -> bool:
    """Whether a class takes part in training."""
    return not one_in_twenty(name)


def split(name: str, vendor: str) -> str | None:
    """`train`, `val` or `test`; None for a drawing of an unseen class, which ships nowhere."""
    if vendor == TEST_VENDOR:
        return "test"
    if not seen(name):
        return None
    held_out = "noto" if digest(f"vendor:{name}")[0] & 1 else "twemoji"
    return "val" if one_in_twenty(f"val:{name}") and vendor == held_out else "train"


def read_archive(source: Path) -> dict[str, bytes]:
    """Every file of the archive by its name below the top folder."""
    with tarfile.open(source) as archive:
        files = {info.name.partition("/")[2]: archive.extractfile(info) for info in archive if info.isfile()}
        return {name: file.read() for name, file in files.items() if file is not None}


def captions(row: dict[str, str]) -> list[str]:
    """Names and tags in both languages, without empty or repeated ones."""
    english_tags = ", ".join(filter(None, row["tags_en"].split("|")))
    chinese_tags = "、".join(filter(None, row["tags_zh"].split("|")))
    return list(dict.fromkeys(filter(None, (row["caption"], row["caption_zh"], english_tags, chinese_tags))))


def members(row: dict[str, str], image: bytes) -> list[tuple[str, bytes]]:
    """The three files of one sample. The key has no dot, which would end it."""
    key = f"{row['label']}-{row['vendor']}"
    about = {
        "label": row["caption"],
        "captions": captions(row),
        "vendor": row["vendor"],
        "seen": seen(row["caption"]),
        "codepoint": row["label"],
    }
    text = json.dumps(about, ensure_ascii=False, separators=(",", ":"))
    return [(f"{key}.webp", image), (f"{key}.txt", row["caption"].encode()), (f"{key}.json", text.encode())]


def tar(files: list[tuple[str, bytes]]) -> bytes:
    """A tar that holds nothing of the machine or the hour that made it."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, content in files:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def build(source: Path) -> dict[str, bytes]:
    """The package's files by name."""
    files = read_archive(source)
    table = files["captions.tsv"].decode("utf-8")
    rows = list(csv.DictReader(io.StringIO(table, newline=""), delimiter="\t", quoting=csv.QUOTE_NONE))
    names = {row["label"]: (row["caption"], row["caption_zh"]) for row in rows}
    parts: dict[str, list[dict[str, str]]] = {"train": [], "val": [], "test": []}
    for row in sorted(rows, key=lambda row: digest(f"order:{row['image']}")):  # mixes the vendors and classes
        if (part := split(row["caption"], row["vendor"])) is not None:
            parts[part].append(row)
    made = {
        "names.txt": "".join(f"{english}\n" for english, _ in names.values()).encode(),
        "names-zh.txt": "".join(f"{chinese}\n" for _, chinese in names.values()).encode(),
    }
    for part, chosen in parts.items():
        shards = TRAIN_SHARDS if part == "train" else 1
        size = -(-len(chosen) // shards)
        for shard in range(shards):
            piece = chosen[shard * size : (shard + 1) * size]
            content = [member for row in piece for member in members(row, files[row["image"]])]
            made[f"{part}-{shard:05d}.tar"] = tar(content)
    return made


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--source", type=Path, default=SOURCE)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--check", action="store_true", help="compare with the files that are there, write nothing")
    arguments = parser.parse_args()
    if not arguments.source.is_file():
        print(f"skipped: {arguments.source} is not here; the shards in {arguments.out} stay as they are")
        return 0
    different = []
    for name, content in build(arguments.source).items():
        path = arguments.out / name
        if not path.is_file() or path.read_bytes() != content:
            different.append(name)
            if not arguments.check:
                path.write_bytes(content)
        print(f"{name:<18} {len(content):>10,} bytes  {hashlib.sha256(content).hexdigest()[:12]}")
    print(f"{'differ' if arguments.check else 'written'}: {', '.join(different) or 'none'}")
    return 1 if arguments.check and different else 0


if __name__ == "__main__":
    sys.exit(main())
