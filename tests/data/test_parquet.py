"""Parquet as img2dataset and Hugging Face write it, made here by pyarrow itself; `data pack` makes shards of it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from shards import picture

from mmcompress.data.batches import read
from mmcompress.data.packing import pack
from mmcompress.errors import CorruptInputError, UsageError

pyarrow = pytest.importorskip("pyarrow")


def table(path: Path, columns: dict[str, Any], **options: Any) -> Path:
    import pyarrow.parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.table(columns), path, **options)
    return path


def packed(source: object, out: Path) -> list[tuple[bytes, tuple[str, ...]]]:
    made = pack(str(source), out)
    return [(sample.image, sample.captions) for sample in read(str(made.path))]


def test_img2datasets_layout(tmp_path: Path) -> None:
    columns = {
        "url": ["u"] * 4,
        "key": [f"{i:09d}" for i in range(4)],
        "jpg": [picture(i) for i in range(4)],
        "caption": [f"square {i}" for i in range(4)],
    }
    assert packed(table(tmp_path / "00000.parquet", columns, row_group_size=2), tmp_path / "s") == [
        (picture(i), (f"square {i}",)) for i in range(4)
    ]


def test_hugging_faces_layout(tmp_path: Path) -> None:
    """A folder of tables, images with bytes and a path, several captions an image."""
    for part in range(2):
        images = [{"bytes": picture(2 * part + i), "path": f"{i}.png"} for i in range(2)]
        columns = {"image": images, "text": [[f"a {part}{i}", f"b {part}{i}"] for i in range(2)], "label": [0, 1]}
        table(tmp_path / "data" / f"train-{part:05d}-of-00002.parquet", columns)
    expected = [(picture(i), (f"a {i // 2}{i % 2}", f"b {i // 2}{i % 2}")) for i in range(4)]
    assert packed(tmp_path / "data", tmp_path / "s") == expected


def test_paths_lie_beside_the_table_and_captions_of_one_image_are_joined(tmp_path: Path) -> None:
    for number in range(2):
        (tmp_path / f"{number}.png").write_bytes(picture(number))
    columns = {"FilePath": ["1.png", "0.png", "1.png"], "title": ["one", "zero", "eins"]}
    expected = [(picture(1), ("one", "eins")), (picture(0), ("zero",))]
    assert packed(table(tmp_path / "t.PARQUET", columns), tmp_path / "s") == expected


def test_other_columns_are_named_with_the_way(tmp_path: Path, cli: Callable[..., Any]) -> None:
    path = table(tmp_path / "t.parquet", {"img": [picture(0)], "alt": ["a"], "caption": ["other"]})
    with pytest.raises(UsageError, match="has the columns img, alt, caption") as told:
        packed(path, tmp_path / "s")
    assert "keys:IMAGE/CAPTION:TABLE" in told.value.hint
    assert cli("data", "pack", f"keys:img/alt:{path}", "--out", tmp_path / "s").code == 0
    assert [sample.captions for sample in read(str(tmp_path / "s"))] == [("a",)]


def test_damage_is_counted_and_named(tmp_path: Path, cli: Callable[..., Any]) -> None:
    columns = {"image": [picture(0), None, picture(2)[:50], picture(3)], "caption": ["a", "b", "c", None]}
    path = table(tmp_path / "t.parquet", columns)
    done = cli("data", "pack", path, "--out", tmp_path / "s", "--max-bad-fraction", 0.8)
    assert done.code == 0 and "row 1: no image" in done.err and "row 3: no caption" in done.err, done.err
    for broken in (b"PAR1", path.read_bytes()[:-20], path.read_bytes()[:40] + bytes(60) + path.read_bytes()[100:]):
        (tmp_path / "b.parquet").write_bytes(broken)
        with pytest.raises(CorruptInputError):
            packed(tmp_path / "b.parquet", tmp_path / "b")
        assert not (tmp_path / "b").exists()


def test_memory_does_not_grow_with_a_table(tmp_path: Path) -> None:
    """One row group of 100 MB, read by a process of its own: what it holds grows by far less."""
    options = {"compression": "none", "use_dictionary": False, "write_statistics": False}
    noise = [i.to_bytes(4, "big") * 50_000 for i in range(500)]
    path = table(tmp_path / "t.parquet", {"image": noise, "caption": ["x"] * 500}, **options)
    assert path.stat().st_size > 99e6
    script = (
        "import resource, sys; from pathlib import Path; from mmcompress.data.parquet import rows, columns\n"
        "table = Path(sys.argv[1]); columns(table)\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "before = peak(); assert sum(1 for _ in rows(table, 'image', ['caption'])) == 500; print(peak() - before)"
    )
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 50_000, f"{int(done.stdout) // 1024} MiB more"
