"""What is there already is not made again, and is not checked either: a rerun loads no model library."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from clip_world import write_squares, write_teacher

from mmcompress.config import StageConfig
from mmcompress.errors import UsageError
from mmcompress.pipeline import standalone
from mmcompress.stages import Stage


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The stages whose own check was asked, in order."""
    asked: list[str] = []
    check = Stage.refuse_impossible

    def counted(stage: Stage, built: StageConfig, *known: Any) -> None:
        asked.append(stage.name)
        check(stage, built, *known)

    monkeypatch.setattr(Stage, "refuse_impossible", counted)
    return asked


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    write_teacher(tmp_path / "teacher")
    path = tmp_path / "recipe.toml"
    stages = '[[stage]]\nrun = "convert"\n[[stage]]\nrun = "export"\n'
    path.write_text(f'[teacher]\nsource = "{tmp_path / "teacher"}"\n{stages}')
    return str(path)


def test_only_what_will_be_made_is_checked(tmp_path: Path, recipe: str, checks: list[str]) -> None:
    first = standalone.run(recipe, tmp_path / "run")
    assert {*checks} == {"convert", "export"}
    checks.clear()
    again = standalone.run(recipe, tmp_path / "run")
    assert checks == [] and [a.digest for a in again.values()] == [a.digest for a in first.values()]
    standalone.run(recipe, tmp_path / "run", ['export.precisions=["fp16"]'])
    assert {*checks} == {"export"}
    checks.clear()
    first["convert"].file("model.safetensors").write_bytes(b"damaged")
    standalone.run(recipe, tmp_path / "run", ['export.precisions=["fp16"]'])
    assert {*checks} == {"convert"}


def test_a_command_too_checks_only_what_it_makes(tmp_path: Path, recipe: str, checks: list[str]) -> None:
    for _ in range(2):
        standalone.convert(str(tmp_path / "teacher"), tmp_path / "c")
        assert {*checks} <= {"convert"}
    checks.clear()
    standalone.convert(str(tmp_path / "teacher"), tmp_path / "c")
    assert checks == []


def test_a_rerun_needs_no_torch(tmp_path: Path, recipe: str) -> None:
    standalone.run(recipe, tmp_path / "run")
    code = (
        "import sys; from pathlib import Path; from mmcompress.pipeline import standalone;"
        f"standalone.run({recipe!r}, Path({str(tmp_path / 'run')!r}));"
        "assert not {'torch', 'transformers'} & sys.modules.keys(), 'a model library was imported'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr.count("reused") == 2, done.stderr
    assert "reused, stage 1 of 2" in done.stderr and "reused, stage 2 of 2" in done.stderr, "which of how many"


def test_what_cannot_be_is_refused_before_what_will_be_made(tmp_path: Path, recipe: str) -> None:
    """Also behind stages that stand already."""
    standalone.run(recipe, tmp_path / "run")
    write_squares(tmp_path)
    with Path(recipe).open("a") as stream:
        stream.write(f'[data]\ntrain = "{tmp_path / "squares-00000.tar"}"\n')
        stream.write('[[stage]]\nrun = "embed"\n[[stage]]\nrun = "distill"\nstudent = {source = "vit-s61"}\n')
    with pytest.raises(UsageError, match="unknown student 'vit-s61'"):
        standalone.run(recipe, tmp_path / "run")
    assert not (tmp_path / "run" / "embed").exists()


def test_a_run_that_was_killed_when_all_was_done_leaves_no_work_behind(tmp_path: Path) -> None:
    write_teacher(tmp_path / "teacher")
    made = standalone.convert(str(tmp_path / "teacher"), tmp_path / "c")
    work = tmp_path / ".c.work"
    for key, stays in ((made.manifest.key, False), ("of another run", True)):
        work.mkdir()
        (work / "key").write_text(key)
        (work / "state").touch()
        standalone.convert(str(tmp_path / "teacher"), tmp_path / "c")
        assert work.exists() == stays
