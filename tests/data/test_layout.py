"""Evaluation sets: folders of images by class, and the layout that CLIP_benchmark's own exporter writes."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest
from shards import picture

from mmcompress.data.batches import read
from mmcompress.data.fingerprint import fingerprint
from mmcompress.data.layout import class_names, own_templates, prompts, say_classes
from mmcompress.data.spec import expand
from mmcompress.errors import CorruptInputError, UsageError

CLASSES = ["tench", "great white shark", "cock"]


def write_tar(path: Path, files: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


@pytest.fixture
def benchmark(tmp_path: Path) -> Path:
    """clip_benchmark.webdataset_builder.convert_dataset's files: `s0000000.cls` is the number as text."""
    folder = tmp_path / "wds"
    for shard in range(2):
        files: dict[str, bytes] = {}
        for index in range(3 * shard, 3 * shard + 3):
            files |= {f"s{index:07d}.cls": str(index % 3).encode(), f"s{index:07d}.webp": picture(index, kind="WEBP")}
        write_tar(folder / "test" / f"{shard}.tar", files)
    (folder / "test" / "nshards.txt").write_text("2")
    (folder / "classnames.txt").write_text("\n".join(CLASSES) + "\n")
    (folder / "zeroshot_classification_templates.txt").write_text("a photo of a {c}.\nart of the {c}.")
    return folder


@pytest.fixture
def by_class(tmp_path: Path) -> Path:
    folder = tmp_path / "by class"
    for place in ("cat/1.jpg", "cat/deep/0.JPEG", "dog/0.png", "dog/notes.txt", ".cache/x.jpg", "empty/readme.md"):
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        (folder / place).write_bytes(picture(len(place), kind="PNG" if place.endswith("png") else "JPEG"))
    return folder


def test_the_numbers_of_cls_are_the_lines_of_classnames(benchmark: Path) -> None:
    assert [Path(place).name for place in expand(str(benchmark))] == ["0.tar", "1.tar"]
    found = list(read(str(benchmark)))
    assert [sample.label for sample in found] == CLASSES * 2
    assert [sample.captions for sample in found] == [(name,) for name in CLASSES * 2]
    assert [sample.key for sample in found][:4] == ["0/s0000000", "0/s0000001", "0/s0000002", "1/s0000003"]
    assert class_names(str(benchmark)) == CLASSES
    assert own_templates(str(benchmark)) == ["a photo of a {c}.", "art of the {c}."]
    assert [sample.label for sample in read(f"{benchmark}/test/{{0..1}}.tar")] == CLASSES * 2
    assert class_names(f"{benchmark}/test") == CLASSES


def test_shards_are_in_the_order_of_their_numbers(benchmark: Path) -> None:
    for number in range(2, 11):
        write_tar(benchmark / "test" / f"{number}.tar", {"a.cls": b"0", "a.png": picture(kind="PNG")})
    (benchmark / "test" / "nshards.txt").write_text("11")
    assert [Path(place).stem for place in expand(str(benchmark))] == [str(number) for number in range(11)]


def test_retrieval_sets_have_a_caption_a_line(benchmark: Path) -> None:
    write_tar(benchmark / "test" / "0.tar", {"s0.jpg": picture(), "s0.txt": b"a dog\na brown dog \n\na pet"})
    (benchmark / "test" / "1.tar").unlink()
    (benchmark / "test" / "nshards.txt").write_text("1\n")
    [sample] = read(str(benchmark))
    assert sample.captions == ("a dog\na brown dog \n\na pet",)  # a set of pairs has one caption a file
    (benchmark / "dataset_type.txt").write_text("retrieval\n")
    [sample] = read(str(benchmark))
    assert sample.captions == ("a dog", "a brown dog", "a pet") and sample.label is None
    assert class_names(str(benchmark)) is None


def test_what_folders_are_taken_for_is_said(
    by_class: Path, benchmark: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def said(spec: str | None) -> str:
        say_classes(spec)
        return " ".join(capsys.readouterr().err.split())

    assert "was taken for 2 classes, whose names are the captions: cat, dog" in said(f"part:0-4/10:{by_class}")
    for index in range(9):
        (by_class / f"e{index}").mkdir()
        (by_class / f"e{index}" / "0.jpg").write_bytes(picture(0))
    assert "for 11 classes, whose names are the captions: cat, dog, e0, e1, e2, e3, e4, e5, …" in said(str(by_class))
    assert not said(str(benchmark)) + said(str(by_class / "cat")) + said("-") + said(None)


def test_folders_of_images_are_classes(by_class: Path) -> None:
    found = list(read(str(by_class)))
    assert [(sample.key, sample.label) for sample in found] == [
        ("cat/1.jpg", "cat"),
        ("cat/deep/0.JPEG", "cat"),
        ("dog/0.png", "dog"),
    ]
    assert {sample.captions for sample in found} == {("cat",), ("dog",)}
    assert class_names(str(by_class)) == ["cat", "dog"]
    assert own_templates(str(by_class)) == []


def test_every_byte_that_counts_is_in_the_fingerprint(benchmark: Path, by_class: Path) -> None:
    specs = [str(benchmark), f"{benchmark}/test", f"{benchmark}/test/*.tar"]
    before = [fingerprint(spec) for spec in specs]
    (benchmark / "train").mkdir()
    (benchmark / "train" / "0.tar").write_bytes(b"not read")
    assert [fingerprint(spec) for spec in specs] == before
    (benchmark / "classnames.txt").write_text("tench\nshark\ncock\n")
    changed = [fingerprint(spec) for spec in specs]
    assert all(old != new for old, new in zip(before, changed, strict=True))
    before = [fingerprint(str(by_class))]
    (by_class / "cat" / "1.jpg").write_bytes(picture(99))
    assert fingerprint(str(by_class)) != before[0]


@pytest.mark.parametrize("number", [b"3", b"-1", b"one", b"", b"\xff", b"99999999999999999999"])
def test_a_class_that_is_not_listed_is_a_bad_sample(benchmark: Path, number: bytes) -> None:
    write_tar(benchmark / "test" / "0.tar", {"s0.cls": number, "s0.jpg": picture()})
    with pytest.raises(CorruptInputError, match=r"the cls is .*, and the classes are numbered 0 to 2"):
        list(read(str(benchmark)))


def test_what_is_wrong_with_the_lists_is_said(benchmark: Path) -> None:
    (benchmark / "test" / "nshards.txt").write_text("3")
    with pytest.raises(UsageError, match=r"nshards.txt says '3', and there are 2 shards beside it") as caught:
        expand(str(benchmark))
    assert caught.value.exit_code == 2 and "missing shards" in caught.value.hint
    (benchmark / "test" / "nshards.txt").unlink()
    (benchmark / "classnames.txt").write_text("tench\n\ncock\n")
    with pytest.raises(CorruptInputError, match=r"line 2 of .*classnames.txt is empty"):
        list(read(str(benchmark)))
    (benchmark / "classnames.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(CorruptInputError, match=r"classnames.txt is no text file"):
        class_names(str(benchmark))
    (benchmark / "classnames.txt").unlink()
    with pytest.raises(CorruptInputError, match=r"no classnames.txt says what its cls means"):
        list(read(str(benchmark)))
    (benchmark / "zeroshot_classification_templates.txt").write_text("a photo\n")
    with pytest.raises(UsageError, match="the template 'a photo' has no place for the label"):
        own_templates(str(benchmark))
    (benchmark / "zeroshot_classification_templates.txt").write_text("a {c}\na {colour} {c}\n")
    with pytest.raises(UsageError, match=r"templates.txt: the template 'a \{colour\} \{c\}' has a place \{colour\}"):
        own_templates(str(benchmark))


def test_a_label_is_put_in_as_it_is() -> None:
    """`str.format` would read `{0.__class__}` in a name or in a template."""
    assert prompts(["{x}", "cat"], ["a {c}", "{} of {0.__class__}"]) == [
        "a {x}",
        "{x} of {0.__class__}",
        "a cat",
        "cat of {0.__class__}",
    ]
