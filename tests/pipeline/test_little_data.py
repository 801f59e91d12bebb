"""How many views `distill` embeds where nobody says it: more of little data, so that its student sees varied images."""

from __future__ import annotations

from pathlib import Path

import pytest
from clip_world import write_squares, write_teacher

from mmcompress.artifact import Artifact
from mmcompress.pipeline import standalone
from mmcompress.pipeline.standalone import training


def views_of(folder: Path, data: str, **given: object) -> int:
    student = {"student.source": "vit-t8-64", "student.image_size": 32, "optimizer.steps": 1, "optimizer.batch": 8}
    asked = {"teacher.source": str(folder / "teacher"), "data.train": data, **student, **given}
    standalone.distill(folder / "student", asked)
    return int(Artifact.open(folder / "student-embeddings").manifest.facts["views"])


@pytest.mark.parametrize(
    ("few", "given", "views"),
    [
        (10_000, {}, 4),
        (5, {}, 1),
        (10_000, {"embed.views": 1}, 1),
        (10_000, {"views": 2, "augment": "drawing"}, 2),
    ],
    ids=["little data", "more than is little", "said", "said, and how"],
)
def test_little_data_is_embedded_in_several_views(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    few: int,
    given: dict[str, object],
    views: int,
) -> None:
    monkeypatch.setattr(training, "FEW", few)
    write_teacher(tmp_path / "teacher")
    assert views_of(tmp_path, str(write_squares(tmp_path)), **given) == views
    assert ("pairs are few: each is embedded in 4 views" in " ".join("".join(capsys.readouterr()).split())) is (
        views == 4
    )


def test_a_stream_is_not_counted(tmp_path: Path) -> None:
    write_teacher(tmp_path / "teacher")
    assert views_of(tmp_path, f"pipe:cat {write_squares(tmp_path)}") == 1
