"""Recipes: what is refused, with which words, before anything runs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mmcompress import publish
from mmcompress.errors import MMCompressError, UsageError
from mmcompress.lock import locked
from mmcompress.manifest import Kind
from mmcompress.pipeline import run as pipeline
from mmcompress.pipeline import standalone
from mmcompress.pipeline.plan import plan, sources_of
from mmcompress.pipeline.recipe import StageTable, load_recipe, parse_assignments
from mmcompress.pipeline.run import run_recipe
from mmcompress.stages import STAGES

GOOD = """
[data]
train = "demo:train"
[teacher]
source = "someone/somewhere"
[student]
source = "vit-s16"
[[stage]]
run = "embed"
[[stage]]
run = "distill"
[[stage]]
run = "prune"
mlp = 0.5
"""


def recipe(folder: Path, text: str) -> Path:
    path = folder / "recipe.toml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("change", "what", "hint"),
    [
        (("mlp = 0.5", "mpl = 0.5"), "unknown key 'mpl'", "did you mean 'mlp'"),
        (("mlp = 0.5", "mlp = 7"), "mlp is 7: Input should be less than or equal to 1", "Share of the MLP units"),
        (('run = "prune"', 'run = "prun"'), "run = 'prun' is no stage", "did you mean 'prune'"),
        (("[teacher]", "[techer]"), "unknown table [techer]", "did you mean 'teacher'"),
        (
            ('source = "someone/somewhere"', 'source = "x"\nsorce = 1'),
            "unknown key 'teacher.sorce'",
            "did you mean 'source'",
        ),
        (('run = "prune"', 'run = "embed"\n#'), "two stages are named 'embed'", "another"),
        (("mlp = 0.5", "optimizer = 3"), "unknown key 'optimizer'", "known"),
        (("[data]", "[data"), "is not TOML", "[[stage]]"),
        (("mlp = 0.5", f"mlp = {'9' * 5000}"), "is not TOML", "[[stage]]"),
        (("mlp = 0.5", f"mlp = {'[' * 9000}"), "is not TOML: it is nested too deeply", "[[stage]]"),
        (("mlp = 0.5", "mlp = true"), "mlp is True: a number is expected", "the number"),
        (("mlp = 0.5", "samples = 99999999999999999999"), "is too large for a whole number", "the largest is 9007"),
        (("mlp = 0.5", 'name = "../x"'), "a stage is named '../x'", "letters, digits"),
        (("mlp = 0.5", 'name = ".x"'), "a stage is named '.x'", "letters, digits"),
        (("mlp = 0.5", "name = 5"), "name is 5: Input should be a valid string", "Of its artifact"),
        (
            ("mlp = 0.5", "checkpoint = [1]"),
            "sources.checkpoint is [1]: Input should be a valid string",
            "earlier stages",
        ),
        (("mlp = 0.5", "data = 5"), "data is 5: Input should be", ""),
        (
            ('[data]\ntrain = "demo:train"', "data = 5"),
            "data is 5: Input should be a valid dictionary",
            "DataConfig",
        ),
    ],
)
def test_a_wrong_recipe_says_what_and_what_to_do(tmp_path: Path, change: tuple[str, str], what: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        load_recipe(recipe(tmp_path, GOOD.replace(*change)))
    assert what in caught.value.what and hint in caught.value.hint and caught.value.exit_code == 2


@pytest.mark.parametrize("said", ["data=5", "teacher=x", "embed=1", "data.train.x=1", "prune.data.train.x.y=1"])
def test_a_value_where_a_table_is_meant_is_refused(tmp_path: Path, said: str) -> None:
    with pytest.raises(UsageError):
        load_recipe(recipe(tmp_path, GOOD), parse_assignments([said]))


def test_a_recipe_as_editors_of_windows_save_it(tmp_path: Path) -> None:
    path = recipe(tmp_path, GOOD)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert load_recipe(path).data == {"train": "demo:train"}


def test_setting_a_whole_table_says_that_a_key_is_needed(tmp_path: Path) -> None:
    for said, what in (("data=5", "'data' is a table"), ("embed=1", "'embed' is a stage")):
        with pytest.raises(UsageError, match=what):
            load_recipe(recipe(tmp_path, GOOD), parse_assignments([said]))


def test_stages_that_read_twice_refuse_stdin(tmp_path: Path) -> None:
    loaded = load_recipe(recipe(tmp_path, GOOD.replace("demo:train", "-")))
    with pytest.raises(UsageError, match="embed reads its data more than once, and stdin can be read once") as refused:
        plan(loaded, {table.name: tmp_path / table.name for table in loaded.stages}, "r.toml")
    assert "pipe:cat FILE" in refused.value.hint


def test_ranges_are_those_that_a_recipe_names_and_no_others() -> None:
    made = {"first": Kind.CHECKPOINT, "second": Kind.CHECKPOINT, "graphs": Kind.ONNX}
    table = StageTable(run="quantize", name="quantize", sources={}, config={})
    assert sources_of(STAGES["quantize"], table, made, "recipe") == {"checkpoint": "second"}
    table = StageTable(run="quantize", name="quantize", sources={"ranges": "first"}, config={})
    assert sources_of(STAGES["quantize"], table, made, "recipe")["ranges"] == "first"
    table = StageTable(run="quantize", name="quantize", sources={"ranges": "frist"}, config={})
    with pytest.raises(UsageError, match=r"ranges = 'frist' is no earlier stage that makes a checkpoint"):
        sources_of(STAGES["quantize"], table, made, "recipe")


def test_missing_recipe_and_missing_source(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no recipe"):
        load_recipe(tmp_path / "nothing.toml")
    without = GOOD.replace('[[stage]]\nrun = "distill"\n', "")
    with pytest.raises(UsageError, match="needs a checkpoint artifact and no stage before it makes one") as caught:
        run_recipe(load_recipe(recipe(tmp_path, without)), tmp_path / "run")
    assert "distill" in caught.value.hint and not (tmp_path / "run").exists()


def test_overrides_reach_their_table(tmp_path: Path) -> None:
    path = recipe(tmp_path, GOOD)
    changed = load_recipe(path, parse_assignments(["prune.mlp=0.4", "teacher.source=other", "data.workers=2"]))
    assert changed.stages[2].config["mlp"] == 0.4
    assert changed.teacher["source"] == "other" and changed.data["workers"] == 2
    with pytest.raises(UsageError, match="no table or stage 'prone'") as caught:
        load_recipe(path, {"prone.mlp": 0.4})
    assert "prune" in caught.value.hint
    with pytest.raises(UsageError, match="is not KEY=VALUE"):
        parse_assignments(["prune.mlp"])
    with pytest.raises(UsageError, match="unknown key 'mpl'"):
        load_recipe(path, {"prune.mpl": 0.4})


def test_every_stage_can_be_imported() -> None:
    for stage in STAGES.values():
        assert callable(stage.function()), stage.name


def test_knowing_a_recipe_does_not_need_torch(tmp_path: Path) -> None:
    path = recipe(tmp_path, GOOD)
    code = (
        "import sys; from pathlib import Path; from mmcompress.pipeline.recipe import load_recipe;"
        f"load_recipe(Path({str(path)!r})); assert 'torch' not in sys.modules, 'torch was imported'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_run_and_a_command_into_its_folder_exclude_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load_recipe(recipe(tmp_path, GOOD))
    (tmp_path / "run").mkdir()
    busy = "another mmcompress is running in .*run"
    with locked(tmp_path / "run" / "embed"), pytest.raises(UsageError, match=busy):
        run_recipe(loaded, tmp_path / "run")

    def command(*_: object) -> None:
        with pytest.raises(UsageError, match="another mmcompress is running"), locked(tmp_path / "run" / "prune"):
            pass
        raise InterruptedError

    monkeypatch.setattr(pipeline, "run_stage", command)
    with pytest.raises(InterruptedError):
        run_recipe(loaded, tmp_path / "run")
    assert list((tmp_path / "run").iterdir()) == []


def test_no_stage_runs_where_a_later_one_could_not_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "run" / "prune").mkdir(parents=True)
    (tmp_path / "run" / "prune" / "notes.txt").write_text("mine")
    monkeypatch.setattr(pipeline, "run_stage", lambda *_: pytest.fail("a stage ran"))
    with pytest.raises(UsageError, match="prune exists and is not an artifact"):
        run_recipe(load_recipe(recipe(tmp_path, GOOD)), tmp_path / "run")


def test_a_work_folder_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / ".out.work").mkdir()
    (tmp_path / ".out.work" / "mine").touch()
    with pytest.raises(UsageError, match="mmcompress did not write it"):
        publish.keep_work_of(tmp_path / ".out.work", "key")
    assert (tmp_path / ".out.work" / "mine").exists()


def test_exit_codes_are_those_of_the_design() -> None:
    codes = {error.__name__: error.exit_code for error in MMCompressError.__subclasses__()}
    design = {"GateFailedError": 1, "UsageError": 2, "MissingRequirementError": 3, "CorruptInputError": 4}
    assert codes == {**design, "StoppedError": os.EX_TEMPFAIL}


def test_the_iterative_recipe_prunes_what_was_recovered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    starts: dict[str, str | None] = {}

    def made(stage: Any, _: object, sources: Any, __: object, out: Path, turn: str) -> Any:
        assert turn.startswith("stage ")
        starts[out.name] = sources["checkpoint"].path.name if "checkpoint" in sources else None
        return SimpleNamespace(path=out, manifest=SimpleNamespace(kind=stage.produces))

    monkeypatch.setattr(pipeline, "run_stage", made)
    given = parse_assignments(["data.train=demo:train", "data.test=demo:test"])
    run_recipe(load_recipe(standalone.recipe_path("iterative"), given), tmp_path / "run")
    assert [name for name, start in starts.items() if start == "recover-1"] == ["prune-2"]
    assert starts["prune-1"] == "distill" and starts["recover-2"] == "prune-2" and starts["quantize"] == "recover-2"
    assert starts["verdict"] == starts["int8"] == "quantize"
