"""A pilot: which teacher it names from given hits, and the whole command on two teachers of which one knows nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clip_world import write_squares, write_teacher

from mmcompress.errors import UsageError
from mmcompress.pipeline import pilot
from mmcompress.pipeline.pilot import PilotDocument, compared, seconds_of


def hits(shares: float, images: int = 500) -> np.ndarray:
    found = np.zeros((images, 2))
    found[: round(shares * images)] = 1
    return found


def test_the_best_is_named_where_it_is_better() -> None:
    take, rows = compared(["small", "large"], [hits(0.5), hits(0.7)], [100, 10])
    assert take == "large" and [row.significant for row in rows] == [True, False]
    assert rows[0].change == pytest.approx(-0.2) and rows[1].change_ci95 is None
    assert rows[0].change_ci95 is not None
    low, high = rows[0].change_ci95
    spread = 1.96 * np.sqrt(0.2 * 0.8 / 500)  # of a paired difference that is -1 on a fifth of the images
    assert low == pytest.approx(-0.2 - spread, abs=0.01) and high == pytest.approx(-0.2 + spread, abs=0.01)


def test_of_those_that_do_not_differ_the_fastest_is_named() -> None:
    order = np.random.default_rng(0).permutation(500)
    take, rows = compared(["small", "large"], [hits(0.5), hits(0.502)[order]], [100, 10])
    assert take == "small" and not any(row.significant for row in rows)


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("10m", 600), ("1.5h", 5400)])
def test_budgets_have_units(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["10", "m", "-1m", "0s", "nan"])
def test_a_budget_without_a_unit_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is no time"):
        seconds_of(text)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pilot")
    write_squares(folder)
    for seed, name in enumerate("ab"):
        write_teacher(folder / name, seed)
    return folder


def asked(world: Path, teachers: str) -> tuple[object, ...]:
    data = ("--data", world / "squares-00000.tar", "--validation", world / "squares-00000.tar")
    return ("distill", "--pilot", teachers, *data, "--student", "inherit:0.5", "--optimizer-batch", 20)


@pytest.mark.slow
def test_the_command_tries_each_and_names_one(
    world: Path, tmp_path: Path, cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a machine that embeds 60 images a second and takes a second for a step."""
    real = pilot._trial

    def measured(*arguments: Any) -> pilot.Trial:
        return replace(real(*arguments), images_per_s=60.0, step_s=1.0, seconds=0.0)

    monkeypatch.setattr(pilot, "_trial", measured)
    teachers = f"{world / 'a'},{world / 'b'}"
    done = cli(*asked(world, teachers), "--budget", "30s", "--out", tmp_path / "out", "--json")
    assert done.code == 0, done.err
    found = PilotDocument.model_validate(json.loads(done.out.splitlines()[-1]))
    assert found.take in teachers.split(",") and found.pairs == found.judged == 60 and found.steps == 14
    assert [row.teacher for row in found.rows] == teachers.split(",")


@pytest.mark.parametrize(
    ("teachers", "more", "what"),
    [
        ("a", (), "compares different teachers"),
        ("a,a", (), "compares different teachers"),
        ("a,b", ("--teacher", "c"), "both name teachers"),
        ("a,b", ("--from", "c"), "starts anew"),
        ("a,b", ("--budget", "3"), "is no time"),
        ("demo:teacher,nothing", (), "unknown teacher 'nothing'"),
    ],
)
def test_what_makes_no_pilot_is_refused(
    world: Path, tmp_path: Path, cli: Callable[..., Any], teachers: str, more: tuple[str, ...], what: str
) -> None:
    done = cli(*asked(world, teachers), *more, "--out", tmp_path / "out")
    assert done.code == 2 and what in done.err
    assert not (tmp_path / "out").exists()
