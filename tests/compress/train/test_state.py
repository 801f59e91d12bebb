"""States to resume from: two are kept, a damaged one is found out, and what the disk refuses is said."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from toy_training import HERE, network, run

from mmcompress.compress.train import state
from mmcompress.compress.train.state import Position, StateWriter, training_tensors
from mmcompress.config import OptimizerConfig
from mmcompress.errors import UsageError

EACH_STEP = OptimizerConfig(epochs=3, batch=8, ema=0.9, save_minutes=1e-9)


def states(work: Path) -> list[Path]:
    return sorted(work.glob("state-*.safetensors"))


@pytest.fixture
def stopped(tmp_path: Path) -> Path:
    """The folder of a run that was interrupted in its twelfth step of fifteen, with two states."""
    work = tmp_path / "stopped"

    def interrupted(step: int) -> None:
        written, deadline = {5: 1, 11: 2}.get(step, 0), time.monotonic() + 60
        while len(states(work)) < written and time.monotonic() < deadline:  # they are written beside the training
            time.sleep(0.001)
        if step > 5:
            time.sleep(0.05)  # one that is due while the last is written is left out
        if step == 11:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(work, EACH_STEP, interrupted)
    return work


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-50])


def test_the_last_two_states_are_kept(stopped: Path) -> None:
    first, second = states(stopped)
    assert 0 < int(first.stem[6:]) < int(second.stem[6:]) <= 11
    assert not list(stopped.glob("*.tmp"))


@pytest.mark.parametrize("damage", [flipped, cut, Path.unlink, lambda path: path.write_bytes(b"")])
def test_the_state_before_a_damaged_one_is_taken(
    stopped: Path, tmp_path: Path, damage: Callable[[Path], object], capsys: pytest.CaptureFixture[str]
) -> None:
    whole = run(tmp_path / "whole", EACH_STEP)
    first, second = states(stopped)
    damage(second)
    capsys.readouterr()
    resumed = run(stopped, EACH_STEP)
    said = " ".join(capsys.readouterr().err.split())
    assert resumed.steps_run == 15 - int(first.stem[6:])
    assert ("this state is damaged" in said) == (damage is not Path.unlink)
    assert f"goes on after step {int(first.stem[6:])} of 15" in said
    assert all(torch.equal(whole.weights[name], resumed.weights[name]) for name in whole.weights)


def test_without_a_whole_state_a_run_begins_again(stopped: Path) -> None:
    for path in states(stopped):
        flipped(path)
    assert run(stopped, EACH_STEP).steps_run == 15


def test_a_state_of_another_model_is_not_taken(stopped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(stopped, EACH_STEP.model_copy(update={"ema": 0.0})).steps_run == 15
    assert "it has other tensors than this model" in " ".join(capsys.readouterr().err.split())


def test_a_resume_by_another_number_of_processes_says_that_it_differs(
    stopped: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    last = states(stopped)[-1]
    with safe_open(last, "pt") as file:
        about = file.metadata()
    assert about["world_size"] == "1"
    save_file(load_file(last), last, about | {"world_size": "2"})
    capsys.readouterr()
    run(stopped, EACH_STEP)
    said = " ".join(capsys.readouterr().err.split())
    assert "the state is of 2 processes, and this run has 1: its result will differ" in said


def test_a_resume_by_as_many_says_nothing_of_it(stopped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    run(stopped, EACH_STEP)
    assert "differ" not in capsys.readouterr().err


def test_a_state_holds_all_that_a_step_changes(stopped: Path) -> None:
    parts = ("weight", "step", "exp_avg", "exp_avg_sq", "average")
    last = load_file(states(stopped)[-1])
    assert set(last) == {f"{part}/{name}" for part in parts for name in network().state_dict()}


def test_a_disk_that_is_full_is_an_error_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(state, "save_file", full)
    with pytest.raises(UsageError, match=r"cannot be written to .*No space left") as caught:
        run(tmp_path, EACH_STEP)
    assert "same command" in caught.value.hint


def test_tensors_are_copied_before_they_are_written(tmp_path: Path) -> None:
    model = network()
    tensors = training_tensors(dict(model.named_parameters()), {}, torch.optim.AdamW(model.parameters()))
    before = tensors["weight/0.weight"].clone()
    with StateWriter(tmp_path, HERE, 0) as writer:
        writer.write_when_due(Position(step=7), tensors)
        tensors["weight/0.weight"].fill_(9)
    assert torch.equal(load_file(tmp_path / "state-000007.safetensors")["weight/0.weight"], before)
