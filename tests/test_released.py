"""Artifacts and packs of each released schema: opened as they are, or refused with the command that makes them again.

`released/artifact-schema-1` and the pack of it were written by mmcompress 0.1.0; released documents are read by
`test_documents.py` and `report/test_report_json.py`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mmcompress.artifact import Artifact
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
