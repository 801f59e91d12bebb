"""Options are keys of configs: each is there, says what its key says, and hands over what was said and nothing else."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from pydantic import BaseModel, Field

from mmcompress import config, stages
from mmcompress.cli.commands import app
from mmcompress.cli.keys import Key, keys_of, merged
from mmcompress.cli.options import shown
from mmcompress.errors import UsageError
from mmcompress.pipeline import standalone
from mmcompress.pipeline.recipe import DATA_FIELDS

Cli = Callable[..., Any]
COMMAND = {"baseline": "export", "trace": "export", "quantize-graphs": "quantize", "static": "export"}
"""The command of a stage that has not its name."""
SAID_OTHERWISE = {
    "baseline": {"teacher.source"},
    "convert": {"teacher.source"},
    "trace": {"teacher.source"},
    "train": {"student", "towers.image", "towers.text"},
}
"""Keys that a command takes as an argument, or from its recipe."""


def options_of(command: str) -> dict[str, Any]:
    """What typer knows of a command, by option."""
    group: Any = typer.main.get_command(app)
    _, complete, _ = group.resolve_command(
        group.make_context("mmcompress", [command, "-h"], resilient_parsing=True), [command]
    )
    return {name: param for param in complete.params for name in param.opts}


def fields(model: type[BaseModel], above: str = "") -> Iterator[tuple[str, Any]]:
    """Every key of a config by pydantic's own account."""
    for name, field in model.model_fields.items():
        table = next(
            (t for t in (field.annotation, *getattr(field.annotation, "__args__", ())) if hasattr(t, "model_fields")),
            None,
        )
        if table is None:
            yield f"{above}{name}", field
        else:
            yield from fields(table, f"{above}{name}.")


def option_name(path: str, reads: tuple[str, ...]) -> str:
    table, _, name = path.rpartition(".")
    if table == "data" and name in DATA_FIELDS:
        return "--data" if name == reads[0] else f"--{name}"
    return f"--{table}" if name == "source" else f"--{path}".replace(".", "-").replace("_", "-")


@pytest.mark.parametrize("name", stages.STAGES)
def test_every_key_of_a_stage_is_an_option_with_its_docstring_and_default(name: str) -> None:
    stage, options = stages.STAGES[name], options_of(COMMAND.get(name, name))
    left_out = SAID_OTHERWISE.get(name, set())
    for path, field in fields(stage.config):
        if path in left_out or path.split(".")[0] in left_out:
            continue
        if path.startswith("data.") and path[5:] in DATA_FIELDS and path[5:] not in stage.reads:
            continue
        plain = option_name(path, stage.reads)
        option = options.get(plain) or options[f"--{name}{plain[1:]}"]
        assert field.description, f"{name}.{path} has no docstring"
        assert option.help.replace("\\", "").startswith(" ".join(field.description.split()))
        default = None if field.is_required() else field.get_default(call_default_factory=True)
        if default is None or default in ((), {}):
            assert option.default is None
        elif isinstance(default, tuple):
            assert list(option.default) == [str(part) for part in default]
        else:
            assert option.default == (default if default is False else shown(default))


def test_a_new_key_is_an_option_without_another_line(cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Grown(config.PruneConfig):
        colour: int = Field(default=3, ge=0)
        """How colourful."""

    grown = {**stages.STAGES, "prune": dataclasses.replace(stages.STAGES["prune"], config=Grown)}
    monkeypatch.setattr("mmcompress.cli.keys.STAGES", grown)
    told = cli("prune", "--help").out
    assert "--colour" in told and "How colourful." in told and "[default: 3]" in told
    given: dict[str, Any] = {}
    monkeypatch.setattr(standalone, "prune", lambda _, __, said, **___: given.update(said))
    without_summaries(monkeypatch)
    cli("prune", tmp_path, "--out", tmp_path / "x", "--colour", "4")
    assert given == {"colour": 4}


def without_summaries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Print nothing of what a command did not make."""
    for summary in ("prune_summary", "quantize_summary"):
        monkeypatch.setattr(f"mmcompress.cli.show_compress.{summary}", lambda *_: ({}, ""))


@pytest.mark.parametrize("command", [*sorted(stages.STAGES.keys() - COMMAND.keys()), "check"])
def test_help_shows_every_option_whole_and_no_placeholder(
    cli: Cli, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERMINAL_WIDTH", "80")
    done = cli(command, "--help")
    assert done.code == 0
    assert not [word for word in ("None", "Undefined", "dataclass", "factory") if word in done.out]
    for name in options_of(command):
        assert not name.startswith("--") or name in done.out, name


@pytest.mark.parametrize(
    ("said", "given"),
    [
        (["--max-drop", "0.01"], {"max_drop": 0.01}),
        (["--max-drop", "any"], {"max_drop": None}),
        (["--max-flips", "null", "--max-drop", "0.005"], {"max_flips": None, "max_drop": 0.005}),
        (["--smooth", "0.5,0.75"], {"smooth": [0.5, 0.75]}),
        (["--smooth", "[]"], {"smooth": []}),
        (["--keep", "a.b", "--keep", "c, d"], {"keep": ["a.b", "c", "d"]}),
        (["--bias-correction", "false"], {"bias_correction": False}),
        (["--data", "5", "--labels", "l.txt"], {"data.train": "5", "data.labels": "l.txt"}),
        (["--data-workers", "2", "--set", "quantize.batch=8"], {"data.workers": 2, "batch": 8}),
        (["--batch", "8", "--set", "batch=8"], {"batch": 8}),
        (["--samples", "many"], {"samples": "many"}),
        ([], {}),
    ],
)
def test_what_is_said_reaches_the_stage_by_its_key(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, said: list[str], given: dict[str, Any]
) -> None:
    reached: list[dict[str, Any]] = []
    monkeypatch.setattr(standalone, "quantize", lambda _, __, said, **___: reached.append(said))
    without_summaries(monkeypatch)
    done = cli("quantize", "a", "--out", "b", *said)
    assert done.code == 0 and reached == [given], done.err


@pytest.mark.parametrize(
    ("said", "what"),
    [
        (["--batch", "8", "--set", "batch=9"], "--batch and --set batch both give batch"),
        (["--batch", "8", "--set", "quantize.batch=9"], "--batch and --set quantize.batch both give batch"),
        (["--data", "x", "--set", 'data={"train": "x"}'], "--data and --set data both give data"),
    ],
)
def test_an_option_and_a_set_that_disagree_are_refused(cli: Cli, said: list[str], what: str) -> None:
    done = cli("quantize", "a", "--out", "b", *said)
    assert done.code == 2 and what in done.err and "leave one of them out" in done.err


def test_the_config_says_what_is_wrong_with_a_value(cli: Cli, tmp_path: Path) -> None:
    done = cli("export", "nowhere", "--out", tmp_path / "x", "--seed", "many")
    assert done.code == 2 and "mmcompress baseline: seed is 'many': Input should be a valid integer" in done.err
    assert "hint: seed: Of every random choice." in done.err


def test_a_teacher_is_not_exported_in_int8_without_a_calibration(cli: Cli, tmp_path: Path) -> None:
    done = cli("export", "demo:teacher", "--out", tmp_path / "x", "--precision", "int8")
    assert done.code == 2 and "demo:teacher is not quantized" in done.err
    assert "mmcompress quantize demo:teacher --data" in done.err and not list(tmp_path.iterdir())


def test_train_keeps_the_keys_of_its_recipe(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def load(_: Path, assignments: dict[str, Any]) -> Any:
        seen.update(assignments)
        raise UsageError("read")

    monkeypatch.setattr(standalone.recipes, "load_recipe", load)
    said = ("--set", "data.train=x", "--set", "embed.views=2", "--set", "train.anchors=9", "--optimizer-lr", "0.1")
    assert cli("train", "demo", "--out", "x", "--views", "3", *said).code == 2
    assert seen == {
        "train.views": 3,
        "train.optimizer.lr": 0.1,
        "data.train": "x",
        "embed.views": 2,
        "train.anchors": 9,
    }


def test_check_takes_the_keys_of_gates() -> None:
    keys = {key.option: key for key in keys_of("report.gates")}
    assert keys["--max-drop"].value(["top1=0.5", "0.01"]) == {"top1": 0.5, "": 0.01}
    from mmcompress.gates import Gates

    assert Gates(max_drop={"": 0.01, "top1": 0.5}).max_drop == {"i2t_r10": 0.01, "top1": 0.5}
    assert Gates.model_validate({"max_drop": 0.01}).max_drop == {"i2t_r10": 0.01}
    with pytest.raises(UsageError, match=r"--max-drop 'i2t_r10' is not METRIC=NUMBER"):
        keys["--max-drop"].value(["i2t_r10"])


def test_merged_knows_a_stage_from_a_table() -> None:
    key = Key("optimizer.lr", "--optimizer-lr", float, "", 0.1)
    assert merged({key: 0.2}, ["optimizer.steps=3"], ["distill"]) == {"optimizer.lr": 0.2, "optimizer.steps": 3}
    with pytest.raises(UsageError, match="both give optimizer"):
        merged({key: 0.2}, ['distill.optimizer={"lr": 0.2}'], ["distill"])
