"""Artifacts and packs of each released schema: opened as they are, or refused with the command that makes them again.

`released/` holds what mmcompress 0.1.0 wrote: an artifact and the pack of it, shards, embeddings of these, and an index
of four photos; released documents are read by
`test_documents.py` and `report/test_report_json.py`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmcompress.artifact import Artifact
from mmcompress.compress.train.embeddings import load_embeddings
from mmcompress.data.batches import listing, read
from mmcompress.data.fingerprint import fingerprint
from mmcompress.errors import CorruptInputError
from mmcompress.manifest import Kind
from mmcompress.pack import pack, unpack

RELEASED = Path(__file__).parent / "released"
DIGEST = "dd26ce8b2f650219aefd28e1f33ef03354f58e81a3ff46e3a7f35d6504d05fd6"
"""What the version that wrote it said."""


def test_an_artifact_of_schema_1_is_opened_and_packed_to_the_same_bytes(tmp_path: Path) -> None:
    opened = Artifact.open(RELEASED / "artifact-schema-1", Kind.SHARDS)
    assert opened.digest == DIGEST == opened.manifest.compute_digest()
    shutil.copytree(opened.path, tmp_path / "a")
    pack(tmp_path / "a", tmp_path / "a.mmc")
    assert (tmp_path / "a.mmc").read_bytes() == (RELEASED / "pack-schema-1.mmc").read_bytes()


def test_a_pack_of_schema_1_is_unpacked(tmp_path: Path) -> None:
    assert unpack(RELEASED / "pack-schema-1.mmc", tmp_path / "a").digest == DIGEST


@pytest.mark.parametrize(
    ("schema", "changed", "command"),
    [
        (2, {}, "`mmcompress data pack`"),
        (0, {"kind": "checkpoint", "stage": "distill"}, "`mmcompress distill`"),
        (True, {"stage": "\x1b[31m"}, "its command"),
        ("1", {"unknown": 1}, "`mmcompress data pack`"),
    ],
)
def test_another_schema_is_refused_with_the_command_that_makes_it_again(
    tmp_path: Path, cli: Callable[..., Any], schema: object, changed: dict[str, object], command: str
) -> None:
    shutil.copytree(RELEASED / "artifact-schema-1", tmp_path / "a")
    file = tmp_path / "a" / "manifest.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "schema": schema, **changed}))
    with pytest.raises(CorruptInputError, match=f"in schema {schema!r}, and this version reads schema 1") as told:
        Artifact.open(tmp_path / "a")
    assert f"make it again in another folder: {command}" in told.value.hint
    done = cli("inspect", tmp_path / "a")
    assert done.code == 4 and "reads schema 1" in done.err and "Traceback" not in done.err


def test_shards_and_embeddings_of_schema_1_still_belong_together() -> None:
    shards = Artifact.open(RELEASED / "shards-schema-1", Kind.SHARDS)
    embeddings = Artifact.open(RELEASED / "embeddings-schema-1", Kind.EMBEDDINGS)
    assert (shards.digest[:12], embeddings.digest[:12]) == ("4880e720fa51", "cef6bc9654ad")
    samples = list(listing(str(shards.path)))
    assert [sample.key for sample in samples] == [f"00000/{number:09d}" for number in range(4)]
    assert [sample.captions for sample in read(str(shards.path))] == [(f"w1 w{11 + number}",) for number in range(4)]
    found = load_embeddings(embeddings)
    assert (len(found), found.views, found.dim, found.augment, found.seed) == (4, 2, 24, "photo", 0)
    keys, marks = [sample.key for sample in samples], [sample.mark for sample in samples]
    images, texts = found.lookup(keys, marks, np.array([0, 1, 0, 1]), [0] * 4)
    np.testing.assert_allclose(images[:, 0], [-0.0379, -0.1360, -0.1880, -0.3320], atol=1e-4)
    np.testing.assert_allclose(texts[:, 0], [-0.1726, -0.1807, -0.1864, -0.2003], atol=1e-4)
    assert fingerprint(str(shards.path)) == found.data, "what trains knows that it was embedded of these"


def test_an_index_of_schema_1_is_searched() -> None:
    pytest.importorskip("faiss")
    from mmcompress.runtime.imageindex import ImageIndex

    opened = ImageIndex.open(RELEASED / "index-schema-1")
    assert (opened.artifact.digest[:12], len(opened), opened.width) == ("64b38f87caf5", 4, 24)
    vectors = opened.graph.vectors([0, 1])
    np.testing.assert_allclose(vectors[:, 0], [-0.06890869, -0.22705078], atol=1e-6)
    names = [opened.search(vector.astype(np.float32), 1)[0].name for vector in vectors]
    assert names == ["/tmp/photos/00.png", "/tmp/photos/01.png"]
