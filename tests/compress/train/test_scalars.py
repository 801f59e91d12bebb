"""TensorBoard is an extra: absent it is named before anything runs; present it reads back every step, once."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from toy_training import run

from mmcompress.compress.early import check_distill, check_train
from mmcompress.config import (
    DataConfig,
    DistillConfig,
    OptimizerConfig,
    StudentConfig,
    TeacherConfig,
    TrainConfig,
    what_counts,
)
from mmcompress.errors import MissingRequirementError


def test_an_absent_package_is_named_before_anything_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    optimizer = OptimizerConfig(tensorboard=str(tmp_path))
    student = StudentConfig(source="vit-s16")
    with pytest.raises(MissingRequirementError, match="'tensorboard'") as caught:
        check_distill(
            DistillConfig(teacher=TeacherConfig(source="vit-l14"), data=DataConfig(), optimizer=optimizer), {}
        )
    assert caught.value.hint == "pip install 'mmcompress[tensorboard]'"
    with pytest.raises(MissingRequirementError):
        check_train(TrainConfig(student=student, data=DataConfig(), optimizer=optimizer), {})
    with pytest.raises(MissingRequirementError):
        run(tmp_path, optimizer.model_copy(update={"batch": 8}))


def test_what_changes_no_weight_is_in_no_key() -> None:
    plain, other = OptimizerConfig(), OptimizerConfig(tensorboard="runs", save_minutes=9, max_skipped=3)
    assert what_counts(plain) == what_counts(other) != what_counts(OptimizerConfig(lr=1))


def test_every_step_is_drawn_once(tmp_path: Path) -> None:
    """By TensorBoard's own reader, over an interruption that left points after the last state."""
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    config = OptimizerConfig(epochs=2, batch=8, save_minutes=60, tensorboard=str(tmp_path / "drawn"))

    def interrupted(step: int) -> None:
        if step == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run", config, interrupted)
    run(tmp_path / "run", config, lambda step: float("nan") if step == 3 else 0.0)
    drawn = reader.EventAccumulator(str(tmp_path / "drawn"))
    drawn.Reload()
    assert set(drawn.Tags()["scalars"]) >= {"loss/loss", "learning rate", "gradient norm", "skipped"}
    skipped = {point.step: point.value for point in drawn.Scalars("skipped")}
    assert skipped == {step: float(step >= 4) for step in range(1, 11)}
