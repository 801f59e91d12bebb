"""The shards that ship: what is in them, that nothing leaks, and that they can be made again byte for byte."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest

from mmcompress.data.batches import read
from mmcompress.data.sample import Sample
from mmcompress.packaged import packaged

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def parts() -> dict[str, list[Sample]]:
    return {part: list(read(f"demo:{part}", max_bad_fraction=0)) for part in ("train", "val", "test")}


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("demo_shards", ROOT / "benchmarks" / "demo" / "shards.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def lines(spec: str) -> list[str]:
    return packaged(spec).read_text(encoding="utf-8").splitlines()


def vendor(sample: Sample) -> str:
    return sample.key.rpartition("-")[2]


def one_in_twenty(text: str) -> bool:
    return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) % 20 == 0


def test_counts(parts: dict[str, list[Sample]]) -> None:
    names = lines("demo:names")
    unseen = {name for name in names if one_in_twenty(name)}
    assert len(names) == len(set(names)) == len(set(lines("demo:names-zh"))) == 1852
    assert len(unseen) == 107
    assert {part: len(found) for part, found in parts.items()} == {"train": 3386, "val": 104, "test": 1852}
    assert 2 * (1852 - 107) == 3386 + 104
    assert Counter(map(vendor, parts["test"])) == {"fluent3d": 1852}
    assert min(Counter(map(vendor, parts["train"] + parts["val"])).values()) > 1700
    assert [sample.label for sample in parts["test"] if not sample.seen] != []
    assert {sample.label for sample in parts["test"] if not sample.seen} == unseen
    assert sum(map(len, (sample.image for found in parts.values() for sample in found))) < 6_000_000


def test_nothing_leaks_into_training(parts: dict[str, list[Sample]]) -> None:
    train, val, test = parts["train"], parts["val"], parts["test"]
    learnt = {sample.label for sample in train}
    assert not any(one_in_twenty(str(label)) for label in learnt) and len(learnt) == 1852 - 107
    assert all(sample.seen for sample in train + val)
    assert {sample.label for sample in val} <= learnt
    assert all(one_in_twenty(f"val:{sample.label}") for sample in val)
    images = [{sample.image for sample in found} for found in (train, val, test)]
    assert not images[0] & images[2] and not images[1] & images[2]
    pairs = Counter((sample.label, vendor(sample)) for sample in train + val)
    assert set(pairs.values()) == {1}


def test_held_out_vendor_is_decided_by_the_name(parts: dict[str, list[Sample]]) -> None:
    for sample in parts["val"]:
        bit = hashlib.sha256(f"vendor:{sample.label}".encode()).digest()[0] & 1
        assert vendor(sample) == ("noto" if bit else "twemoji")


def test_captions_are_in_both_languages(parts: dict[str, list[Sample]]) -> None:
    english, chinese = lines("demo:names"), lines("demo:names-zh")
    translation = dict(zip(english, chinese, strict=True))
    for sample in parts["train"] + parts["val"] + parts["test"]:
        assert sample.captions[0] == sample.label
        assert translation[str(sample.label)] in sample.captions
        assert 2 <= len(sample.captions) <= 4 and len(set(sample.captions)) == len(sample.captions)
    grinning = next(sample for sample in parts["train"] if sample.label == "grinning face")
    assert "嘿嘿" in grinning.captions


def test_vendors_and_classes_are_mixed(parts: dict[str, list[Sample]]) -> None:
    for start in range(0, 3200, 400):
        assert 140 < Counter(map(vendor, parts["train"][start : start + 400]))["noto"] < 260


def test_shards_can_be_made_again_byte_for_byte(script: ModuleType) -> None:
    if not script.SOURCE.is_file():
        pytest.skip("the archive that the shards are made from is not here")
    folder = packaged("demo:train").parent
    built = script.build(script.SOURCE)
    assert {path.name for pattern in ("*.tar", "*.txt") for path in folder.glob(pattern)} == set(built)
    for name, content in built.items():
        assert (folder / name).read_bytes() == content, name


def test_script_skips_with_a_message_where_the_archive_is_absent(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["shards.py", "--source", str(tmp_path / "none.tgz"), "--out", str(tmp_path)])
    assert script.main() == 0
    assert capsys.readouterr().out.startswith(f"skipped: {tmp_path / 'none.tgz'} is not here")
    assert not list(tmp_path.iterdir())


def test_licenses_travel_along() -> None:
    canonical = (
        "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"  # apache.org/licenses/LICENSE-2.0.txt
    )
    assert hashlib.sha256((ROOT / "LICENSE").read_bytes()).hexdigest() == canonical
    notice = (ROOT / "NOTICE").read_text(encoding="utf-8")
    for credit in ("Noto Emoji", "Twemoji", "CC-BY 4.0", "Fluent Emoji", "Microsoft", "emojibase-data", "Unicode CLDR"):
        assert credit in notice
