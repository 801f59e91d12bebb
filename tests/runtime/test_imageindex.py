"""Indices of images against numpy: what is found, what is embedded again, and what is refused."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image
from shards import shard, write_tar
from toy_model import SIDE, make_model

pytest.importorskip("faiss")

from mmcompress.artifact import Artifact, Draft
from mmcompress.errors import CorruptInputError, GateFailedError, MMCompressError, UsageError
from mmcompress.manifest import Kind
from mmcompress.pipeline import searching
from mmcompress.pipeline.searching import Asked
from mmcompress.runtime import growth
from mmcompress.runtime.answers import search
from mmcompress.runtime.encoder import Encoder
from mmcompress.runtime.imageindex import KNOWN, ImageIndex, superseded
from mmcompress.runtime.neighbours import LOOK_AT_ALL, Graph, candidates
from mmcompress.runtime.recall import walk_for

Make = Callable[..., Artifact]
RED = Asked("red circle", None, 5)


def write_photos(folder: Path, numbers: Sequence[int]) -> Path:
    folder.mkdir(exist_ok=True)
    for number in numbers:
        pixels = np.random.default_rng(number).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:03d}.png")
    return folder


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return write_photos(tmp_path / "photos", range(120))


@pytest.fixture
def embedded(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The names of the images that pass through a model, as they do."""
    names: list[object] = []
    as_read = Encoder.as_read

    def noting(self: Encoder, images: Any, called: Sequence[object] = ()) -> Any:
        names.extend(called)
        return as_read(self, images, called)

    monkeypatch.setattr(Encoder, "as_read", noting)
    return names


def unit(rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def test_the_graph_finds_what_numpy_finds_by_looking_at_all(tmp_path: Path) -> None:
    noise = np.random.default_rng(0)
    vectors, queries = unit(noise.standard_normal((3000, 32))), unit(noise.standard_normal((50, 32)))
    graph = Graph.empty(32)
    graph.add(vectors[:1000])
    graph.add(vectors[1000:].astype(np.float16))
    graph.write(tmp_path / "graph", tmp_path / "nodes.npy")
    gone = np.arange(0, 3000, 3)
    read = Graph.read(tmp_path / "graph", tmp_path / "nodes.npy", 32, 3000)
    for without in (None, gone):
        cosines = queries @ vectors.T
        if without is not None:
            cosines[:, without] = -2
        expected = np.argsort(-cosines, axis=1)[:, :10]
        rows, found = read.nearest(queries, 10, without)
        shared = [len(set(a) & set(b)) for a, b in zip(rows.tolist(), expected.tolist(), strict=True)]
        assert np.mean(shared) / 10 > 0.98
        np.testing.assert_allclose(found, np.take_along_axis(cosines, rows, axis=1), atol=1e-3)
    with pytest.raises(
        CorruptInputError, match="3000 vectors of width 32 for 3000 rows, and its index says 3000 of 33"
    ):
        Graph.read(tmp_path / "graph", tmp_path / "nodes.npy", 33, 3000)
    for wrong in (np.arange(3000), np.arange(3000, dtype=np.int32)[::-1], np.arange(2999, dtype=np.int32)):
        np.save(tmp_path / "nodes.npy", wrong)
        with pytest.raises(CorruptInputError, match=r"its index says 3000 of 32"):
            Graph.read(tmp_path / "graph", tmp_path / "nodes.npy", 32, 3000)


def recall(graph: Graph, vectors: np.ndarray[Any, Any], queries: np.ndarray[Any, Any], held: int | None) -> float:
    """Of the ten nearest by numpy; equal cosines are of equal rank."""
    cosines = queries @ vectors.astype(np.float16).astype(np.float32).T
    worst = np.sort(cosines, axis=1)[:, -10:][:, :1]
    rows, near = graph.nearest(queries, 10, None, held)
    found = np.take_along_axis(cosines, rows, axis=1)
    np.testing.assert_allclose(near, found, atol=1e-3)
    assert all(len(set(each)) == 10 for each in rows.tolist())
    return float((found >= worst - 1e-4).mean())


def photos_and_copies(blur: float, last: bool) -> np.ndarray[Any, Any]:
    """5,000 vectors around 200 centres, and 50 more with 200 copies each, that differ by noise of so much."""
    noise = np.random.default_rng(0)
    centres = unit(noise.standard_normal((200, 64)))
    photos = unit(centres[noise.integers(0, 200, 5050)] + 1.5 * noise.standard_normal((5050, 64)) / 8)
    copies = np.repeat(photos[5000:], 200, axis=0)
    copies = unit(copies + blur * noise.standard_normal(copies.shape) / 8)
    return np.concatenate([photos[:5000], copies] if last else [copies, photos[:5000]])


@pytest.mark.parametrize("last", [False, True])
def test_copies_are_in_no_walks_way(last: bool, tmp_path: Path) -> None:
    """Linked to one another alone, they hid what was added before or behind them: recall was 0.58."""
    vectors = photos_and_copies(0.0, last)
    graph = Graph.empty(64)
    for start in range(0, len(vectors), 1024):
        graph.add(vectors[start : start + 1024])
    graph.write(tmp_path / "graph", tmp_path / "nodes.npy")
    read = Graph.read(tmp_path / "graph", tmp_path / "nodes.npy", 64, len(vectors))
    for each in (graph, read):
        assert recall(each, vectors, vectors[::100], None) > 0.99
    read.add(vectors[:3000])  # what it has already, and a graph that was read knows it
    assert len(read) == len(vectors) + 3000
    read.write(tmp_path / "graph", tmp_path / "again.npy")
    assert np.load(tmp_path / "again.npy").max() == np.load(tmp_path / "nodes.npy").max() == 5049
    copies = np.flatnonzero((vectors == vectors[0]).all(axis=1)) if not last else np.arange(5000, 5200)
    gone = copies[::2]
    rows, _ = graph.nearest(vectors[copies[:1]], 300, gone)
    assert set(np.setdiff1d(copies, gone)) <= set(rows[0].tolist()) and not set(gone) & set(rows[0].tolist())
    rows, _ = graph.nearest(vectors[copies[:1]], 10, np.setdiff1d(np.arange(len(vectors)), copies[:7]))
    assert sorted(rows[0].tolist()) == sorted(copies[:7].tolist()), "seven are left, of one node"


@pytest.mark.parametrize("blur", [0.001, 0.01, 0.1])
def test_a_walk_is_as_long_as_finds_enough_or_all_are_looked_at(blur: float) -> None:
    vectors = photos_and_copies(blur, False)
    graph = Graph.empty(64)
    for start in range(0, len(vectors), 1024):
        graph.add(vectors[start : start + 1024])
    walk = walk_for(graph)
    assert walk.candidates == LOOK_AT_ALL or walk.candidates > candidates(len(vectors))
    queries = vectors[5:][:: len(vectors) // 200]
    assert recall(graph, vectors, queries, None) < 0.98 <= recall(graph, vectors, queries, walk.candidates)
    easy = Graph.empty(64)
    easy.add(vectors[10_000:])
    assert walk_for(easy).candidates == candidates(5000)
    assert walk_for(easy, np.arange(5000)).recall_at_10 == 1, "of nothing nothing is missed"


def test_more_images_are_walked_through_with_more_candidates() -> None:
    assert [candidates(rows) for rows in (0, 1000, 16_384, 100_000, 1_000_000)] == [128, 128, 128, 316, 1000]


def test_a_later_row_takes_the_place_of_one_with_its_image_or_its_name() -> None:
    known = np.array([(1, 10), (2, 20), (3, 30), (1, 11), (4, 20)], KNOWN)
    assert superseded(known).tolist() == [0, 1]
    assert superseded(known[:3]).tolist() == []


def test_an_index_answers_as_a_folder_does(make_artifact: Make, photos: Path, tmp_path: Path) -> None:
    model = make_artifact()
    (photos / "broken.png").write_bytes((photos / "000.png").read_bytes()[:60])
    made = searching.index(str(model.path), str(photos), tmp_path / "index")
    assert (made.embedded, made.copies, made.damaged) == (120, 0, 1)
    assert made.artifact.manifest.facts["images"] == 120
    assert made.artifact.manifest.facts["candidates"] == 128 and made.artifact.manifest.metrics["recall_at_10"] > 0.99
    with Encoder.open(model) as encoder:
        for asked in (RED, Asked(None, photos / "007.png", 5)):
            expected = search(encoder, photos, asked.text, 5, asked.image)
            found = searching.search(str(tmp_path / "index"), asked)
            assert [name for name, _ in found.matches] == [str(path) for path, _ in expected]
            np.testing.assert_allclose([c for _, c in found.matches], [c for _, c in expected], atol=1e-3)
            assert found.agreement is None
    assert len(searching.search(str(tmp_path / "index"), Asked("red", None, 500)).matches) == 120


def test_only_what_is_new_is_embedded(
    make_artifact: Make, photos: Path, tmp_path: Path, embedded: list[object]
) -> None:
    model, out = str(make_artifact().path), tmp_path / "index"
    first = searching.index(model, str(photos), out).artifact
    embedded.clear()
    same = searching.index(model, str(photos), out)
    assert same.artifact.digest == first.digest and not embedded and same.copies == 120
    more = write_photos(tmp_path / "more", range(110, 130))
    grown = searching.index(model, str(more), out)
    assert (grown.embedded, grown.copies) == (10, 10) and len(embedded) == 10
    assert grown.artifact.manifest.facts["images"] == 130
    (photos / "000.png").write_bytes((more / "129.png").read_bytes())  # of an image that is there: a copy
    shutil.move(photos / "001.png", photos / "moved.png")
    write_photos(photos, [999])
    shutil.move(photos / "999.png", photos / "002.png")  # a file that changed
    embedded.clear()
    changed = searching.index(model, str(photos), out)
    assert embedded == [str(photos / "002.png")] and changed.moved == 1
    opened = ImageIndex.open(out)
    names = [opened.name(int(row)) for row in opened.live()]
    assert len(names) == len(set(names)) == len(opened) == 129, "of the first image no file is left"
    assert not {str(photos / "000.png"), str(photos / "001.png")} & {*names} and str(photos / "moved.png") in names
    with Encoder.open(model, towers=("image",)) as encoder:
        vector = encoder.image_files([photos / "002.png"])[0]
    assert opened.search(vector, 1)[0].name == str(photos / "002.png")


def found_by_itself(index: Path, model: str, files: Sequence[Path]) -> list[str]:
    """The name of what an index finds for each file."""
    opened = ImageIndex.open(index)
    with Encoder.open(Artifact.open(model), towers=("image",)) as encoder:
        return [opened.search(encoder.image_files([file])[0], 1)[0].name for file in files]


def test_files_that_change_places_keep_their_images(
    make_artifact: Make, tmp_path: Path, embedded: list[object]
) -> None:
    """Each is a copy of what the index has, by another name that exists: what is found would be the other one."""
    photos, model, out = write_photos(tmp_path / "photos", range(8)), str(make_artifact().path), tmp_path / "index"
    searching.index(model, str(photos), out)
    file = [photos / f"{number:03d}.png" for number in range(8)]
    content = [path.read_bytes() for path in file]
    file[0].write_bytes(content[1]), file[1].write_bytes(content[0])  # two have changed places
    (photos / "kept.png").write_bytes(content[2])
    write_photos(tmp_path / "new", [99])
    file[2].write_bytes((tmp_path / "new" / "099.png").read_bytes())  # one has changed, its copy is kept
    (photos / "000-kept.png").write_bytes(content[7])
    file[7].write_bytes(content[6])  # one is another's copy, its own copy is read before
    embedded.clear()
    made = searching.index(model, str(photos), out)
    assert embedded[: made.embedded] == [str(file[2])] and made.damaged == 0
    now = [photos / name for name in ("000.png", "001.png", "002.png", "kept.png", "000-kept.png", "006.png")]
    assert found_by_itself(out, model, now) == [str(path) for path in now]
    assert found_by_itself(out, model, [file[7]]) == [str(file[6])]
    assert len(ImageIndex.open(out)) == 9
    again = searching.index(model, str(photos), out)
    assert (again.embedded, again.moved, again.copies) == (0, 0, 10)
    assert again.artifact.digest == made.artifact.digest


def test_a_file_that_changes_between_a_kill_and_the_next_run_is_not_lost(
    make_artifact: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos, model, out = write_photos(tmp_path / "photos", range(8)), str(make_artifact().path), tmp_path / "index"
    monkeypatch.setattr(growth.Growth, "close", interrupted)
    monkeypatch.setattr(growth, "BATCH", 2)
    monkeypatch.setattr(growth, "PART_ROWS", 2)
    with pytest.raises(KeyboardInterrupt):
        searching.index(model, str(photos), out)
    monkeypatch.undo()
    first, second = photos / "000.png", photos / "001.png"
    first.rename(photos / "z.png"), second.rename(first), (photos / "z.png").rename(second)
    searching.index(model, str(photos), out)
    assert found_by_itself(out, model, [first, second]) == [str(first), str(second)]


def interrupted(_: growth.Growth) -> None:
    raise KeyboardInterrupt


def test_an_index_of_which_most_was_replaced_finds_as_well() -> None:
    """A walk that meets mostly rows that are gone ends too early: with others, or with none at all."""
    noise = np.random.default_rng(0)
    base, queries = noise.standard_normal((500, 64)), unit(noise.standard_normal((50, 64)))
    graph = Graph.empty(64)
    vectors = unit(np.concatenate([base + 0.05 * noise.standard_normal((500, 64)) for _ in range(30)]))
    graph.add(vectors)
    for generations, top in ((2, 10), (10, 10), (30, 10), (30, 100)):
        live = np.arange((generations - 1) * 500, generations * 500)
        gone = np.setdiff1d(np.arange(len(vectors)), live)
        rows, cosines = graph.nearest(queries, top, gone)
        expected = live[np.argsort(-(queries @ vectors[live].T), axis=1)[:, :top]]
        shared = [len(set(a) & set(b)) / top for a, b in zip(rows.tolist(), expected.tolist(), strict=True)]
        assert np.mean(shared) > 0.98 and np.isfinite(cosines).all() and (rows >= 0).all()


def test_a_killed_run_goes_on(
    make_artifact: Make, photos: Path, tmp_path: Path, embedded: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, out = str(make_artifact().path), tmp_path / "index"
    monkeypatch.setattr(growth, "PART_ROWS", 32)
    put = growth.Growth._put

    def killed(self: growth.Growth, name: str, *rest: Any) -> None:
        if name.endswith("100.png"):
            raise KeyboardInterrupt
        put(self, name, *rest)

    monkeypatch.setattr(growth.Growth, "_put", killed)
    with pytest.raises(KeyboardInterrupt):
        searching.index(model, str(photos), out)
    assert not out.exists()
    monkeypatch.setattr(growth.Growth, "_put", put)
    embedded.clear()
    made = searching.index(model, str(photos), out)
    assert len(embedded) == made.embedded == 120 - 96
    whole = searching.index(model, str(photos), tmp_path / "whole")
    opened, other = ImageIndex.open(out), ImageIndex.open(whole.artifact.path)
    assert [opened.name(row) for row in range(120)] == [other.name(row) for row in range(120)]
    np.testing.assert_array_equal(opened.graph.vectors(range(120)), other.graph.vectors(range(120)))
    assert not list(tmp_path.glob(".index.*"))


def test_images_of_other_kinds_are_passed_over_with_a_word(
    make_artifact: Make, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a.gif", "b.GIF", "c.tiff", "._d.heic"):
        (photos / name).write_bytes(b"GIF89a")
    searching.index(str(make_artifact().path), str(photos), tmp_path / "index")
    told = " ".join("".join(capsys.readouterr()).split())
    assert "not read: 2 .gif, 1 .tiff; JPEG, PNG and WebP are" in told


def test_names_lead_into_shards(make_artifact: Make, tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    place = shard(tmp_path / "shards" / "00000.tar", 12)
    searching.index(str(make_artifact().path), str(tmp_path / "shards"), tmp_path / "index")
    opened = ImageIndex.open(tmp_path / "index")
    assert [opened.name(row) for row in range(12)] == [f"{place}/{number:06d}" for number in range(12)]


def test_names_that_are_no_utf_8_are_found_and_printed(make_artifact: Make, photos: Path, tmp_path: Path) -> None:
    model, odd = make_artifact(), Path(os.fsdecode(os.fsencode(photos) + b"/bad\xff.png"))
    try:
        shutil.move(photos / "007.png", odd)
    except OSError:
        pytest.skip("this file system has no such names")
    made = searching.index(str(model.path), str(photos), tmp_path / "index")
    assert made.embedded == 120
    found = searching.search(str(tmp_path / "index"), Asked(None, odd, 1))
    assert found.matches[0].name == str(odd)
    assert searching.index(str(model.path), str(photos), tmp_path / "index").copies == 120


def test_an_index_of_an_earlier_form_is_refused_with_the_command_that_makes_it_again(
    make_artifact: Make, photos: Path, tmp_path: Path
) -> None:
    model, out = str(make_artifact().path), tmp_path / "index"
    made = searching.index(model, str(photos), out).artifact
    with Artifact.create(tmp_path / "old", kind=Kind.INDEX, stage="index", key="k", parents={}) as draft:
        for name in made.manifest.files:
            if name != "nodes.npy":
                shutil.copy(made.file(name), draft.path / name)
        draft.facts = {key: value for key, value in made.manifest.facts.items() if key != "candidates"}
        draft.metrics = dict(made.manifest.metrics)
    for ask in (
        lambda: searching.search(str(tmp_path / "old"), RED),
        lambda: searching.index(model, str(photos), tmp_path / "old"),
    ):
        with pytest.raises(CorruptInputError, match="was made by an earlier mmcompress") as refused:
            ask()
        assert f"mmcompress index {model} --images IMAGES --out {tmp_path / 'old'}" in str(refused.value.hint)


def test_another_model_is_refused_or_measured(make_artifact: Make, photos: Path, tmp_path: Path) -> None:
    model, index = make_artifact(), str(tmp_path / "index")
    searching.index(str(model.path), str(photos), tmp_path / "index")
    renamed = shutil.copytree(model.path, tmp_path / "renamed")
    assert searching.search(index, RED, model=str(renamed)).agreement is None, "the same model elsewhere"
    weights = make_model()
    noise = np.random.default_rng(0).standard_normal(weights.second.shape).astype(np.float32)
    near = make_artifact("near", model=replace(weights, second=weights.second + 0.02 * weights.second.std() * noise))
    far = make_artifact("far", model=replace(weights, second=noise))
    with pytest.raises(CorruptInputError, match="was made by another model than"):
        searching.search(index, RED, model=str(near.path))
    with pytest.raises(CorruptInputError, match="was made by the model"):
        searching.index(str(near.path), str(photos), tmp_path / "index")
    found = searching.search(index, RED, model=str(near.path), accept_loss=0.3)
    assert found.agreement is not None and found.agreement.images == 120
    files = sorted(photos.glob("*.png"))
    with Encoder.open(model) as old, Encoder.open(near) as new:
        vectors, queries = old.image_files(files), new.image_files(files)
    best = [np.argsort(-(rows @ vectors.T), axis=1)[:, :10] for rows in (vectors, queries)]
    expected = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(*(b.tolist() for b in best), strict=True)])
    assert found.agreement.recall_at_10 == pytest.approx(expected, abs=0.01) and 0.7 < expected < 1
    with pytest.raises(GateFailedError, match=r"this model loses \d+\.\d% of what the index's own model finds"):
        searching.search(index, RED, model=str(far.path), accept_loss=0.3)
    shutil.rmtree(photos)
    with pytest.raises(UsageError, match="only 0 can be read where they were"):
        searching.search(index, RED, model=str(near.path), accept_loss=0.3)


def test_another_model_reads_images_by_the_keys_that_the_index_was_made_with(
    make_artifact: Make, photos: Path, tmp_path: Path
) -> None:
    files = sorted(photos.glob("*.png"))
    members = [
        (f"{n:03d}.{suffix}", content)
        for n, file in enumerate(files)
        for suffix, content in (("photo", file.read_bytes()), ("jpg", files[n - 1].read_bytes()), ("alt", b"words"))
    ]
    place = write_tar(tmp_path / "00000.tar", members)
    model, out = make_artifact(), tmp_path / "index"
    assert searching.index(str(model.path), f"keys:photo/alt:{place}", out).embedded == 120
    other = make_artifact("other", model=make_model(1))
    found = searching.search(str(out), RED, model=str(other.path), accept_loss=1)
    by_paths = tmp_path / "by-paths"
    searching.index(str(model.path), str(photos), by_paths)
    expected = searching.search(str(by_paths), RED, model=str(other.path), accept_loss=1)
    assert found.agreement is not None and found.agreement == expected.agreement, "not of the photos under jpg"
    write_photos(tmp_path / "more", range(120, 125))
    searching.index(str(model.path), str(tmp_path / "more"), out)
    assert searching.search(str(out), RED, model=str(other.path), accept_loss=1).agreement.images == 125  # type: ignore[union-attr]
    for file in files[1:]:  # what lies under these names now is not measured against the vectors of before
        shutil.copy(files[0], file)
    with pytest.raises(UsageError, match="only 1 can be read where they were"):
        searching.search(str(by_paths), RED, model=str(other.path), accept_loss=1)


def test_what_cannot_be_asked_is_refused(
    make_artifact: Make, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = str(make_artifact().path)
    index = str(searching.index(model, str(photos), tmp_path / "index").artifact.path)
    other = str(make_artifact("other").path)
    cases: list[tuple[type[MMCompressError], str, Callable[[], object]]] = [
        (UsageError, "nothing to look for", lambda: searching.search(index, Asked(None, None, 5))),
        (UsageError, "both looked for", lambda: searching.search(index, Asked("red", photos / "000.png", 5))),
        (UsageError, "is an index, and --images", lambda: searching.search(index, RED, images=photos)),
        (UsageError, "is no index", lambda: searching.search(model, RED, images=photos, accept_loss=0.1)),
        (UsageError, "no images are given", lambda: searching.search(model, RED)),
        (UsageError, "which is read to make it", lambda: searching.index(model, str(photos), photos / "index")),
        (UsageError, "holds what export made", lambda: searching.index(other, str(photos), Path(model))),
        (UsageError, "of kind 'index'", lambda: searching.index(index, str(tmp_path / "nowhere"), tmp_path / "new")),
    ]
    for kind, words, ask in cases:
        with pytest.raises(kind, match=words):
            ask()
    shutil.move(model, tmp_path / "elsewhere")
    with pytest.raises(UsageError, match="which is no folder here"):
        searching.search(index, RED)
    assert searching.search(index, RED, model=str(tmp_path / "elsewhere")).matches
    graph = Path(index) / "graph.faiss"
    content = bytearray(graph.read_bytes())
    content[len(content) // 2] ^= 1
    graph.write_bytes(content)
    with pytest.raises(CorruptInputError, match=r"graph\.faiss is damaged"):
        searching.search(index, RED)


def test_what_a_stranger_wrote_into_an_index_runs_nothing(
    make_artifact: Make, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = str(make_artifact().path)
    (tmp_path / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\ndef teacher(): ...\n")
    monkeypatch.setattr(searching, "_lasting", lambda source: f"{tmp_path / 'mine.py'}:teacher")
    put = growth.Growth._put

    def renamed(self: growth.Growth, name: str, *rest: Any) -> None:
        put(self, f"pipe:touch {tmp_path / 'ran'}; cat {name}", *rest)

    monkeypatch.setattr(growth.Growth, "_put", renamed)
    index = str(searching.index(model, str(photos), tmp_path / "index").artifact.path)
    with pytest.raises(UsageError, match="which is no folder here"):
        searching.search(index, RED)
    other = make_artifact("other", model=make_model(1))
    with pytest.raises(UsageError, match="only 0 can be read where they were"):
        searching.search(index, RED, model=str(other.path), accept_loss=1)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("fact", "value"),
    [("parts", ["x"]), ("parts", [-1, 13]), ("parts", 12), ("width", "24"), ("candidates", None), ("precision", 1)],
)
def test_facts_of_an_index_that_are_none_are_refused(
    make_artifact: Make, photos: Path, tmp_path: Path, fact: str, value: object
) -> None:
    made = searching.index(str(make_artifact().path), str(photos), tmp_path / "index").artifact
    with resealed(made, tmp_path / "other") as draft:
        draft.facts[fact] = value
    with pytest.raises(CorruptInputError, match=rf"manifest\.json: facts\.{fact}(\.\d)? is "):
        ImageIndex.open(tmp_path / "other")


@pytest.mark.parametrize("name", ["names-000000.json", "known-000000.npy", "gone.npy", "nodes.npy"])
def test_a_file_of_an_index_that_holds_something_else_is_refused(
    make_artifact: Make, photos: Path, tmp_path: Path, name: str
) -> None:
    model = str(make_artifact().path)
    made = searching.index(model, str(photos), tmp_path / "index").artifact
    wrong = np.array([5.0, 7.0])
    for number, content in enumerate((b"", b"[]", b'["a", 1]', wrong)):
        with resealed(made, tmp_path / str(number)) as draft:
            if isinstance(content, bytes):
                (draft.path / name).write_bytes(content)
            else:
                np.save(draft.path / "wrong.npy", content)
                (draft.path / "wrong.npy").replace(draft.path / name)
        with pytest.raises(CorruptInputError, match=f"{re.escape(name)}|its index says"):
            opened = ImageIndex.open(tmp_path / str(number))
            opened.name(0)
            opened.content(0)


def test_images_are_not_added_to_an_index_whose_arrays_are_none(
    make_artifact: Make, photos: Path, tmp_path: Path
) -> None:
    made = searching.index(str(make_artifact().path), str(photos), tmp_path / "index").artifact
    (tmp_path / "work").mkdir()
    for number, content in enumerate((b"", b"[]")):
        with resealed(made, tmp_path / str(number)) as draft:
            (draft.path / "known-000000.npy").write_bytes(content)
        with pytest.raises(CorruptInputError, match=r"known-000000\.npy holds no array"):
            growth.Growth(cast(Any, None), tmp_path / "work", ImageIndex.open(tmp_path / str(number)))


@contextmanager
def resealed(made: Artifact, place: Path) -> Iterator[Draft]:
    """The same index in another place, to be spoiled by a sender who can seal."""
    with Artifact.create(place, kind=Kind.INDEX, stage="index", key="k", parents={}) as draft:
        for name in made.manifest.files:
            shutil.copy(made.file(name), draft.path / name)
        draft.facts, draft.metrics = dict(made.manifest.facts), dict(made.manifest.metrics)
        yield draft


def test_an_index_in_the_place_of_images_is_told_how_it_is_asked(
    make_artifact: Make, photos: Path, tmp_path: Path
) -> None:
    model = str(make_artifact().path)
    searching.index(model, str(photos), tmp_path / "index")
    with pytest.raises(UsageError, match="is an index, and no folder of images") as told:
        searching.search(model, RED, tmp_path / "index")
    assert f"search {tmp_path / 'index'}" in str(told.value.hint)
