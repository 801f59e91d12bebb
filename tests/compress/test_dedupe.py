"""Near duplicates and filtering by a teacher's score, against numpy that compares all pairs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from shards import pair, shard, write_tar

from mmcompress.artifact import Artifact
from mmcompress.compress import dedupe as deduping
from mmcompress.compress.dedupe import dedupe, linked
from mmcompress.compress.select import Wanted, select
from mmcompress.compress.train.chunks import CONTENTS, FOLDER, Contents, Shard, chunk_file, write_chunk
from mmcompress.data.batches import read
from mmcompress.errors import CorruptInputError, UsageError
from mmcompress.manifest import Kind


def unit(rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def embeddings(place: Path, spec: Path, images: Any, texts: Any, a_chunk: int = 7) -> Path:
    """Cached embeddings (N, D) of a shard's samples, as `embed` lays them out."""
    held, first = list(read(str(spec))), 0
    with Artifact.create(place, kind=Kind.EMBEDDINGS, stage="embed", key="") as draft:
        (draft.path / FOLDER).mkdir()
        sizes, said = [], []
        for start in range(0, len(held), a_chunk):
            some = held[start : start + a_chunk]
            counts = [len(sample.captions) for sample in some]
            write_chunk(
                draft.path / chunk_file("k", len(sizes)),
                torch.from_numpy(images[start : start + a_chunk, None]).half(),
                torch.from_numpy(texts[first : first + sum(counts)]).half(),
                counts,
                [sample.mark for sample in some],
                [sample.key for sample in some],
            )
            first += sum(counts)
            sizes.append(len(some))
            said.append(sum(counts))
        contents = Contents(shards=(Shard(name=spec.stem, key="k", samples=tuple(sizes), captions=tuple(said)),))
        (draft.path / CONTENTS).write_text(contents.model_dump_json())
    return place


def components(vectors: np.ndarray[Any, Any], threshold: float) -> list[int]:
    """Of each vector the first of its component, by walking through all pairs."""
    like = vectors @ vectors.T >= threshold
    first = [-1] * len(vectors)
    for row in range(len(vectors)):
        if first[row] < 0:
            waiting = [row]
            while waiting:
                at = waiting.pop()
                if first[at] < 0:
                    first[at] = row
                    waiting += np.flatnonzero(like[at]).tolist()
    return first


def test_what_is_linked_is_a_component(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deduping, "_BLOCK", 16)
    draw = np.random.default_rng(0)
    for threshold in (0.3, 0.6, 0.9):
        vectors = unit(draw.standard_normal((150, 6))).astype(np.float32)
        found = linked(vectors, threshold)
        assert found.tolist() == components(vectors, threshold)
    assert linked(vectors[:1], 0.5).tolist() == [0]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return shard(tmp_path / "pairs.tar", 60)


def test_duplicates_are_listed_and_left_out(data: Path, tmp_path: Path) -> None:
    images = unit(np.random.default_rng(0).standard_normal((60, 8)))
    images[40:43] = images[5] + 0.01
    images[50] = images[49]
    place = embeddings(tmp_path / "e", data, images, images)
    found = dedupe(str(data), place, tmp_path / "list.tsv")
    assert (found.images, found.clusters, found.duplicates) == (60, 2, 4)
    assert found.largest == (("pairs/000005", 4), ("pairs/000049", 2))
    header, *lines = (tmp_path / "list.tsv").read_text().splitlines()
    assert [line.split("\t")[:2] for line in lines] == [
        *([f"pairs/{n:06d}", "pairs/000005"] for n in (40, 41, 42)),
        ["pairs/000050", "pairs/000049"],
    ]
    assert all(float(line.split("\t")[2]) > 0.95 for line in lines)
    made = select(str(data), Wanted(exclude=tmp_path / "list.tsv"), tmp_path / "out")
    kept = [sample.captions[0] for sample in read(str(made.path))]
    assert kept == [f"number {n}" for n in range(60) if n not in (40, 41, 42, 50)]
    assert header == "key\tlike\tcosine"


def test_cells_find_nearly_what_all_pairs_find(monkeypatch: pytest.MonkeyPatch, data: Path, tmp_path: Path) -> None:
    draw = np.random.default_rng(1)
    centres = unit(draw.standard_normal((300, 16)))
    vectors = np.concatenate([centres, unit(centres + 0.05 * draw.standard_normal((300, 16)) / 4)]).astype(np.float32)

    class Images:
        def __len__(self) -> int:
            return len(vectors)

        def vectors(self, rows: Any) -> Any:
            return vectors[rows]

        def blocks(self) -> Any:
            yield from ((start, vectors[start : start + 100]) for start in range(0, 600, 100))

    exact = components(vectors, 0.98)
    assert deduping.clusters(Images(), 0.98).tolist() == exact  # type: ignore[arg-type]
    monkeypatch.setattr(deduping, "_ONE_CELL", 100)
    monkeypatch.setattr(deduping, "CELL", 100)
    found = deduping.clusters(Images(), 0.98)  # type: ignore[arg-type]
    pairs = [row for row, first in enumerate(exact) if first != row]
    assert len(pairs) > 200
    assert np.mean([found[row] == exact[row] for row in pairs]) > 0.95
    assert all(found[row] in (row, exact[row]) for row in pairs)


def test_pairs_below_a_similarity_are_dropped(tmp_path: Path) -> None:
    files = [file for n in range(20) for file in pair(f"{n:02d}", n, None, {"captions": [f"a {n}", f"b {n}"]})]
    data = write_tar(tmp_path / "pairs.tar", files)
    draw = np.random.default_rng(0)
    images, texts = unit(draw.standard_normal((20, 4))), unit(draw.standard_normal((40, 4)))
    place = embeddings(tmp_path / "e", data, images, texts)
    made = select(str(data), Wanted(0.1, place), tmp_path / "out")
    scores = (np.repeat(images, 2, axis=0) * texts).sum(axis=1)
    expected = [
        tuple(
            caption
            for caption, score in zip((f"a {n}", f"b {n}"), scores[2 * n : 2 * n + 2], strict=True)
            if score >= 0.1
        )
        for n in range(20)
    ]
    assert [sample.captions for sample in read(str(made.path))] == [captions for captions in expected if captions]
    facts = made.manifest.facts
    assert facts["below"] == expected.count(()) > 0 and facts["below_captions"] == int((scores < 0.1).sum())
    assert facts["similarity"]["p50"] == pytest.approx(np.percentile(scores, 50, method="inverted_cdf"), abs=2e-3)
    with pytest.raises(UsageError, match=r"no pair of .* is left; similarities are p0 -"):
        select(str(data), Wanted(1, place), tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_a_list_may_come_from_any_editor(data: Path, tmp_path: Path) -> None:
    """Line ends of Windows, an empty line at the end."""
    listed = tmp_path / "list.tsv"
    listed.write_bytes(b"key\tlike\tcosine\r\npairs/000003\tpairs/000001\t1.0\r\n\r\n")
    assert select(str(data), Wanted(exclude=listed), tmp_path / "o").manifest.facts["excluded"] == 1


def test_what_does_not_belong_together_is_refused(data: Path, tmp_path: Path, cli: Callable[..., Any]) -> None:
    images = unit(np.random.default_rng(0).standard_normal((60, 8)))
    place = embeddings(tmp_path / "e", data, images, images)
    other = shard(tmp_path / "other.tar", 60)
    (tmp_path / "elsewhere").mkdir()
    files = [file for n in range(60) for file in pair(f"{n:06d}", 100 + n)]
    same_keys = write_tar(tmp_path / "elsewhere" / "pairs.tar", files)
    (tmp_path / "mine.txt").write_text("notes")
    (tmp_path / "list.tsv").write_text("key\tlike\tcosine\npairs/nothing\tpairs/000001\t1.0\n")
    (tmp_path / "latin.tsv").write_bytes(b"key\tlike\tcosine\npairs/\xe4\tpairs/000001\t1.0\n")
    cases: list[tuple[type[Exception], str, Callable[[], object]]] = [
        (CorruptInputError, "embeds 60 samples, and 0 of them", lambda: dedupe(str(other), place, tmp_path / "l")),
        (CorruptInputError, "is not the one whose", lambda: dedupe(str(same_keys), place, tmp_path / "l")),
        (UsageError, "no list of ours", lambda: dedupe(str(data), place, tmp_path / "mine.txt")),
        (UsageError, "nothing to filter by", lambda: select(str(data), Wanted(), tmp_path / "o")),
        (UsageError, "--embeddings", lambda: select(str(data), Wanted(0.2), tmp_path / "o")),
        (
            CorruptInputError,
            "does not begin",
            lambda: select(str(data), Wanted(exclude=tmp_path / "mine.txt"), tmp_path / "o"),
        ),
        (
            CorruptInputError,
            "0 of them are in",
            lambda: select(str(data), Wanted(exclude=tmp_path / "list.tsv"), tmp_path / "o"),
        ),
        (UsageError, "which is read to make it", lambda: select(str(data), Wanted(0.2, place), place / "o")),
        (CorruptInputError, "none of the 60 samples", lambda: select(str(other), Wanted(0.2, place), tmp_path / "o")),
        (
            CorruptInputError,
            "latin.tsv is not UTF-8",
            lambda: select(str(data), Wanted(exclude=tmp_path / "latin.tsv"), tmp_path / "o"),
        ),
    ]
    for kind, words, ask in cases:
        with pytest.raises(kind, match=words):
            ask()
        assert not (tmp_path / "o").exists() and not (tmp_path / "l").exists()
    found = cli("data", "dedupe", data, "--embeddings", place, "--out", tmp_path / "l", "--json")
    assert found.code == 0 and '"duplicates":0' in found.out
