"""Cached embeddings a shard: what grows, moves or is damaged costs its own part, and what is held does not grow."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from cached import cached
from clip_world import write_teacher
from shards import pair, picture, png_of, shard, write_tar

from mmcompress import artifact, digests
from mmcompress.artifact import Artifact
from mmcompress.compress.dedupe import one_teachers
from mmcompress.compress.teacher import Teacher, load_teacher
from mmcompress.compress.train import chunks, embed
from mmcompress.compress.train.chunks import contents_of, read_chunk
from mmcompress.compress.train.embeddings import load_embeddings
from mmcompress.config import TeacherConfig
from mmcompress.data.batches import listing
from mmcompress.errors import CorruptInputError
from mmcompress.pipeline import standalone

Embed = Callable[..., Artifact]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_teacher(tmp_path_factory.mktemp("teacher"))


@pytest.fixture
def embedded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images the teacher was asked for, call by call."""
    asked: list[int] = []

    def counting(config: TeacherConfig, device: torch.device) -> Teacher:
        loaded = load_teacher(config, device)

        def encode_image(pixels: torch.Tensor) -> torch.Tensor:
            asked.append(len(pixels))
            return loaded.encode_image(pixels)

        return replace(loaded, encode_image=encode_image)

    monkeypatch.setattr(embed, "load_teacher", counting)
    monkeypatch.setattr(embed, "_CHUNK", 8)
    return asked


@pytest.fixture
def run(teacher: Path) -> Embed:
    def made(out: Path, data: Path | str, **given: object) -> Artifact:
        said = {"teacher.source": str(teacher), "data.train": str(data), "batch": 4, "device": "cpu", **given}
        return standalone.embed(out, said)

    return made


def three_shards(folder: Path) -> Path:
    folder.mkdir()
    for number, samples in enumerate((12, 5, 20)):
        shard(folder / f"{number:05d}.tar", samples, 100 * number)
    return folder


def test_a_shard_more_is_the_work_for_one(tmp_path: Path, run: Embed, embedded: list[int]) -> None:
    data = three_shards(tmp_path / "data")
    first = run(tmp_path / "e", data)
    assert sum(embedded) == 37 and [s.samples for s in contents_of(first.path).shards] == [(8, 4), (5,), (8, 8, 4)]
    inodes = {name: first.file(name).stat().st_ino for name in first.manifest.files if name != "shards.json"}
    shard(data / "00001b.tar", 6, 500)
    embedded.clear()
    second = run(tmp_path / "e", data)
    assert sum(embedded) == 6 and len(load_embeddings(second)) == 43
    assert {name: second.file(name).stat().st_ino for name in inodes} == inodes, "the very files, not copies"
    assert run(tmp_path / "fresh", data).manifest.files == second.manifest.files
    embedded.clear()
    (data / "00000.tar").unlink()
    shutil.move(data, tmp_path / "moved")
    third = run(tmp_path / "e", tmp_path / "moved")
    assert not embedded and len(load_embeddings(third)) == 31 and len(third.manifest.files) == 6


def test_what_a_chunk_is_made_from_is_in_its_name(tmp_path: Path, run: Embed, embedded: list[int]) -> None:
    data, other = three_shards(tmp_path / "data"), write_teacher(tmp_path / "other", seed=1)
    run(tmp_path / "e", data)
    for given in ({"views": 2}, {"batch": 2}, {"seed": 9}, {"teacher.source": str(other)}):
        embedded.clear()
        run(tmp_path / "e", data, **given)
        assert sum(embedded) == 37 * given.get("views", 1), given


def test_a_rerun_and_a_reader_read_no_file_again(
    tmp_path: Path, run: Embed, embedded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file that grows with the data; what is touched is read and refused if it is another one."""
    data = three_shards(tmp_path / "data")
    made = run(tmp_path / "e", data)
    hashed: list[Path] = []
    for module in (artifact, digests):
        whole = module.hash_file
        monkeypatch.setattr(module, "hash_file", lambda path, whole=whole: hashed.append(path) or whole(path))
    digests._tables.clear()
    assert run(tmp_path / "e", data).digest == made.digest and not hashed
    chunk = next(iter(sorted((tmp_path / "e" / "shards").iterdir())))
    content = bytearray(chunk.read_bytes())
    content[-1] ^= 1
    chunk.write_bytes(content)
    with pytest.raises(CorruptInputError, match="is damaged"):
        Artifact.open(tmp_path / "e")
    embedded.clear()
    assert run(tmp_path / "e", data).digest == made.digest
    assert 0 < sum(embedded) <= 8, "the damaged chunk and no other"


def test_what_is_held_does_not_grow_with_the_data(
    tmp_path: Path, run: Embed, embedded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shards are closed again, and every sample is found, in any order, with the embeddings of its own row."""
    data = three_shards(tmp_path / "data")
    made = run(tmp_path / "e", data, views=2)
    found, (images, texts) = load_embeddings(made), cached(made)
    monkeypatch.setattr(chunks, "HELD", 20)
    samples = list(listing(str(data)))
    order = np.random.default_rng(0).permutation(37)
    for part in np.split(order, [10, 20]):
        chosen, views = [samples[row] for row in part], part % 2
        ours = found.lookup([s.key for s in chosen], [s.mark for s in chosen], views, [0] * len(part))
        torch.testing.assert_close(ours[0], images[part, views], rtol=0, atol=0)
        torch.testing.assert_close(ours[1], texts[part], rtol=0, atol=0)
        assert sum(len(opened.rows) for opened in found.stores[0]._open.values()) <= 20
    assert not found.has("00000/strange") and not found.has("strange")


def test_who_asks_in_the_order_of_the_data_holds_one_shard(tmp_path: Path, run: Embed, embedded: list[int]) -> None:
    """`data dedupe` and `data filter`: the pages of other shards would stay in memory with the mapped files."""
    data = three_shards(tmp_path / "data")
    run(tmp_path / "e", data)
    store = one_teachers(tmp_path / "e")[1]
    for sample in listing(str(data)):
        store.check(sample.key, sample.mark)
        assert len(store._open) == 1


def test_anchors_are_spread_over_the_data(tmp_path: Path, run: Embed, embedded: list[int]) -> None:
    made = run(tmp_path / "e", three_shards(tmp_path / "data"))
    found, (images, texts) = load_embeddings(made), cached(made)
    rows = np.linspace(0, 36, 20).round().astype(int)
    for ours, every in zip(found.anchors(10, torch.device("cpu")), (images[:, 0], texts), strict=True):
        torch.testing.assert_close(ours, every[rows].unique(dim=0)[:10], rtol=0, atol=0)
    torch.testing.assert_close(found.anchors(100, torch.device("cpu"))[1], texts.unique(dim=0), rtol=0, atol=0)


def test_samples_that_lie_in_no_shard_are_found_by_their_keys(tmp_path: Path, run: Embed, embedded: list[int]) -> None:
    (tmp_path / "data" / "deep").mkdir(parents=True)
    rows = ["image\tcaption"]
    for n in range(11):
        name = f"{'deep/' if n % 2 else ''}{n}.jpg"
        (tmp_path / "data" / name).write_bytes(picture(n))
        rows += [f"{name}\tpicture {n}", f"{name}\tagain {n}"]
    (tmp_path / "data" / "captions.tsv").write_text("\n".join(rows) + "\n")
    made = run(tmp_path / "e", tmp_path / "data")
    found, (images, texts) = load_embeddings(made), cached(made)
    assert [shard.samples for shard in contents_of(made.path).shards] == [(8, 3)] and len(texts) == 22
    samples = list(listing(str(tmp_path / "data")))
    ours = found.lookup([s.key for s in samples], [s.mark for s in samples], np.zeros(11, np.int64), [1] * 11)
    torch.testing.assert_close(ours[0], images[:, 0], rtol=0, atol=0)
    torch.testing.assert_close(ours[1], texts[1::2], rtol=0, atol=0)


def test_a_chunk_without_an_image_that_can_be_decoded_is_empty(tmp_path: Path, run: Embed, embedded: list[int]) -> None:
    broken = [(f"{n:06d}.{end}", part) for n in range(8) for end, part in (("png", png_of(9, 9)), ("txt", b"broken"))]
    write_tar(tmp_path / "a.tar", [*broken, *pair("good", 1)])
    shard(tmp_path / "b.tar", 30)
    made = run(tmp_path / "e", tmp_path, **{"data.max_bad_fraction": 0.5})
    assert [shard.samples for shard in contents_of(made.path).shards] == [(0, 1), (8, 8, 8, 6)]
    empty = read_chunk(made.file(contents_of(made.path).shards[0].files[0]))
    assert empty.images.shape == (0, 1, 32) and empty.texts.shape == (0, 32) and empty.keys == []
    assert len(load_embeddings(made)) == 31
    with pytest.raises(CorruptInputError, match="8 of 39"):
        run(tmp_path / "strict", tmp_path, **{"data.max_bad_fraction": 0.2})


def test_a_shard_without_a_sample_is_told(
    tmp_path: Path, run: Embed, embedded: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    """No chunk is made of it, so nobody who decodes meets it."""
    shard(tmp_path / "a.tar", 30)
    (tmp_path / "b.tar").write_bytes(b"")
    (tmp_path / "c.tar").write_bytes(b"no tar" * 500)
    run(tmp_path / "e", tmp_path, **{"data.max_bad_fraction": 0.1})
    said = " ".join(capsys.readouterr().err.split())
    assert "2 of 32 items cannot be read" in said
    assert all(f"{name}.tar: the shard breaks after 0 samples" in said for name in "bc")


def test_what_cannot_be_decoded_is_told_and_judged_once(
    tmp_path: Path, run: Embed, embedded: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    """Whoever embeds the worst chunks alone, as one of several processes or after a stop, holds them to the whole."""
    broken = [(f"{n:06d}.{end}", part) for n in range(8) for end, part in (("png", png_of(9, 9)), ("txt", b"broken"))]
    shard(tmp_path / "a.tar", 30)
    write_tar(tmp_path / "b.tar", broken)
    limit = {"data.max_bad_fraction": 0.3}
    made = run(tmp_path / "e", tmp_path, **limit)
    said = " ".join(capsys.readouterr().err.split())
    assert (
        said.count("and were skipped") == 1 and "8 of 38 items cannot be read" in said and "b/000000: the image" in said
    )
    bad = contents_of(made.path).shards[1].files[0]
    made.file(bad).unlink()
    embedded.clear()
    again = run(tmp_path / "e", tmp_path, **limit)
    assert (embedded == [] and again.digest == made.digest) or again.file(bad).is_file()


def test_a_stream_that_may_come_later_is_refused(tmp_path: Path, run: Embed, embedded: list[int]) -> None:
    """The key is of the address, so what is kept would lack the shard for good."""
    shard(tmp_path / "a.tar", 30)
    for program in (f"pipe:cat {tmp_path}/a.tar; exit 3", "pipe:true"):
        with pytest.raises(CorruptInputError, match="the shard breaks after") as caught:
            run(tmp_path / "e", program, **{"data.max_bad_fraction": 0.5})
        assert "leave it out" in str(caught.value.hint) and not (tmp_path / "e").exists()


def test_a_file_that_is_torn_is_made_again(tmp_path: Path, run: Embed, embedded: list[int]) -> None:
    """As after a power cut: a name without all of its content."""
    data = three_shards(tmp_path / "data")
    whole = run(tmp_path / "whole", data)

    def cut(job: object, *rest: object) -> int:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(embed, "_check_decoded", cut)
        run(tmp_path / "e", data)
    torn = next(iter(sorted((tmp_path / ".e.work" / "shards").iterdir())))
    torn.write_bytes(torn.read_bytes()[:-10])
    embedded.clear()
    assert run(tmp_path / "e", data).manifest.files == whole.manifest.files
    assert 0 < sum(embedded) <= 8
