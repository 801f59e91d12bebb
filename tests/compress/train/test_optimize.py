"""The training loop: its schedule, a resume that changes nothing, and steps that are skipped."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from toy_training import HERE, Rows, network, run, stream

from mmcompress.compress.train.optimize import computes_bfloat16, learning_rate, optimize, total_steps
from mmcompress.config import OptimizerConfig
from mmcompress.errors import UsageError

EACH_STEP = OptimizerConfig(epochs=3, batch=8, ema=0.9, save_minutes=1e-9)


@pytest.mark.parametrize("stop_after", [1, 5, 7, 12])
def test_a_resumed_run_ends_with_the_same_bytes(tmp_path: Path, stop_after: int) -> None:
    def interrupted(step: int) -> None:
        if step == stop_after:
            raise KeyboardInterrupt

    whole = run(tmp_path / "whole", EACH_STEP)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts", EACH_STEP, interrupted)
    resumed = run(tmp_path / "parts", EACH_STEP)
    assert resumed.steps_run < whole.steps_run
    assert all(torch.equal(whole.weights[name], resumed.weights[name]) for name in whole.weights)


def test_training_lowers_the_loss(tmp_path: Path) -> None:
    before, trained = network(), network()
    trained.load_state_dict(run(tmp_path, OptimizerConfig(epochs=40, batch=8, lr=1e-2)).weights)
    batch = next(stream(99, 0)).values
    assert nn.functional.mse_loss(trained(batch), batch) < 0.5 * nn.functional.mse_loss(before(batch), batch)


def test_schedule_rises_then_falls_to_zero() -> None:
    config = OptimizerConfig(lr=1.0, warmup=0.1)
    rates = [learning_rate(step, 100, config) for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == rates[10] == pytest.approx(1.0)
    assert rates[55] == pytest.approx(0.5) and rates[-1] < 1e-3
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_steps_follow_from_epochs() -> None:
    assert total_steps(OptimizerConfig(epochs=2.5, batch=10), 45) == (10, 4)
    assert total_steps(OptimizerConfig(steps=7, batch=10), 45) == (7, 4)
    with pytest.raises(UsageError, match="a batch of 64 pairs was asked for, and there are 45"):
        total_steps(OptimizerConfig(batch=64), 45)


def broken_at(*steps: int) -> Callable[[int], float]:
    """NaN to be added to the loss of these steps."""
    return lambda step: math.nan if step in steps else 0.0


def test_a_step_that_is_not_finite_is_skipped_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Against torch's own AdamW in a plain loop that leaves these batches out."""
    config = OptimizerConfig(epochs=3, batch=8, ema=0.9, precision="float32")
    found = run(tmp_path, config, broken_at(0, 6, 7))
    assert found.metrics["skipped"] == 3 and found.metrics["steps"] == 15
    said = " ".join(capsys.readouterr().err.split())
    assert "step 1 is skipped: its loss is nan or its gradient is not finite (0/0/0, 0/0/1," in said
    assert "3 of 15 steps were skipped" in said and "step 7 is skipped" not in said

    reference = network()
    matrices, others = ([p for p in reference.parameters() if (p.ndim == 2) is wanted] for wanted in (True, False))
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}],
        betas=(0.9, 0.98),
        eps=1e-6,
    )
    average = {name: p.detach().clone() for name, p in reference.named_parameters()}
    for step in sorted({*range(15)} - {0, 6, 7}):
        values = next(stream(*divmod(step, 5))).values
        optimizer.zero_grad()
        nn.functional.mse_loss(reference(values), values).backward()
        nn.utils.clip_grad_norm_(reference.parameters(), config.clip)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, 15, config)
        optimizer.step()
        for name, p in reference.named_parameters():
            average[name].lerp_(p.detach(), 1 - min(0.9, (1 + step) / (10 + step)))
    for name, mean in average.items():
        torch.testing.assert_close(found.weights[name], mean, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("stop_after", [1, 7, 9])
def test_skipped_steps_are_counted_over_a_resume(tmp_path: Path, stop_after: int) -> None:
    def interrupted(step: int) -> float:
        if step == stop_after:
            raise KeyboardInterrupt
        return broken_at(0, 6, 7)(step)

    whole = run(tmp_path / "whole", EACH_STEP, broken_at(0, 6, 7))
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts", EACH_STEP, interrupted)
    resumed = run(tmp_path / "parts", EACH_STEP, broken_at(0, 6, 7))
    assert all(torch.equal(whole.weights[name], resumed.weights[name]) for name in whole.weights)
    assert resumed.metrics["skipped"] == 3 and resumed.metrics["loss"] == whole.metrics["loss"]


def test_a_gradient_that_is_not_finite_is_skipped_too(tmp_path: Path) -> None:
    """The loss is 0 at step 3, and its gradient, that of a root at 0, is infinite."""

    def endless(step: int, weights: nn.Module) -> torch.Tensor:
        weight = next(weights.parameters())
        return (weight - weight.detach()).sum().sqrt() if step == 3 else weight.new_zeros(())

    assert run(tmp_path, OptimizerConfig(epochs=1, batch=8), also=endless).metrics["skipped"] == 1


def test_too_many_in_a_row_are_an_error_that_names_the_samples(tmp_path: Path) -> None:
    config = EACH_STEP.model_copy(update={"max_skipped": 3})
    assert run(tmp_path / "few", config, broken_at(5, 6, 8, 9)).metrics["skipped"] == 4
    with pytest.raises(UsageError, match=r"test diverged: .* in 3 steps in a row, the last of them step 8, ") as caught:
        run(tmp_path / "many", config, broken_at(5, 6, 7, 8))
    assert caught.value.what.endswith("on the samples " + ", ".join(f"1/2/{row}" for row in range(8)))
    assert "learning rate" in caught.value.hint
    assert run(tmp_path / "many", config).steps_run < 15, "a good state stays"


def test_a_run_in_which_no_step_is_finite_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="diverged: no step had a finite loss"):
        run(tmp_path, OptimizerConfig(steps=2, batch=8), broken_at(0, 1))


@pytest.mark.parametrize("save_minutes", [1e-9, 60.0])
def test_weights_that_are_not_finite_are_never_written(tmp_path: Path, save_minutes: float) -> None:
    """Broken after the last loss is known, so nothing but a look at the weights finds it."""

    def breaking(step: int, weights: nn.Module) -> float:
        if step == 14:
            bias = weights[2].bias  # type: ignore[index]
            bias.register_hook(lambda gradient: (bias.data.fill_(math.inf), gradient)[1])
        return 0.0

    config = EACH_STEP.model_copy(update={"save_minutes": save_minutes})
    with pytest.raises(UsageError, match=r"training diverged: weight/2\.bias is not finite") as caught:
        run(tmp_path, config, also=breaking)
    assert "learning rate" in caught.value.hint and not (tmp_path / "state-000015.safetensors").exists()
    assert run(tmp_path, config).metrics["skipped"] == 0


def test_terms_add_up_to_the_loss(tmp_path: Path) -> None:
    trained = network()

    def terms(batch: Rows, _: int) -> dict[str, torch.Tensor]:
        return {
            "whole": 0.75 * nn.functional.mse_loss(trained(batch.values), batch.values),
            "rest": 0.25 * nn.functional.mse_loss(trained(batch.values), batch.values),
        }

    config = OptimizerConfig(epochs=1, batch=8, precision="float32")
    (tmp_path / "terms").mkdir()
    found = optimize(trained, terms, stream, config=config, pairs=40, world=HERE, work=tmp_path / "terms", what="test")
    assert found["loss"] == pytest.approx(run(tmp_path / "one", config).metrics["loss"], rel=1e-5)


@pytest.mark.parametrize(
    ("device", "told", "expected"),
    [
        ("cpu", {"_is_amx_tile_supported": lambda: True}, True),
        ("cpu", {"_is_amx_tile_supported": lambda: False, "_is_avx512_bf16_supported": lambda: True}, False),
        ("cpu", {}, False),  # a torch that does not say
        ("meta", {"_is_amx_tile_supported": lambda: True}, False),
    ],
)
def test_bfloat16_is_chosen_on_processors_with_amx(
    monkeypatch: pytest.MonkeyPatch, device: str, told: dict[str, object], expected: bool
) -> None:
    monkeypatch.setattr(torch, "cpu", SimpleNamespace(**told))
    assert computes_bfloat16(torch.device(device)) is expected
