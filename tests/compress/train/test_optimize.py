"""The training loop: its schedule, and a resume that changes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from mmcompress.compress.train.optimize import computes_bfloat16, learning_rate, optimize, total_steps
from mmcompress.config import OptimizerConfig
from mmcompress.distributed import World
from mmcompress.errors import UsageError

HERE = World(0, 1, torch.device("cpu"))


def stream(epoch: int, skip: int) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(epoch)
    batches = torch.randn(5, 8, 4, generator=generator)
    return iter(batches[skip:])


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 4))


def run(work: Path, config: OptimizerConfig, stop_after: int | None = None) -> dict[str, Tensor]:
    trained, seen = model(), 0

    def loss_of(batch: Tensor, _: int) -> Tensor:
        nonlocal seen
        seen += 1
        if stop_after is not None and seen > stop_after:
            raise KeyboardInterrupt
        return nn.functional.mse_loss(trained(batch), batch)

    optimize(trained, loss_of, stream, config=config, pairs=40, world=HERE, work=work, what="test")
    return trained.state_dict()


@pytest.mark.parametrize("stop_after", [1, 5, 7, 12])
def test_a_resumed_run_ends_with_the_same_bytes(tmp_path: Path, stop_after: int) -> None:
    config = OptimizerConfig(epochs=3, batch=8, ema=0.9, save_minutes=1e-9)
    (tmp_path / "whole").mkdir()
    (tmp_path / "parts").mkdir()
    whole = run(tmp_path / "whole", config)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts", config, stop_after)
    resumed = run(tmp_path / "parts", config)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_training_lowers_the_loss(tmp_path: Path) -> None:
    before = model()
    after = run(tmp_path, OptimizerConfig(epochs=40, batch=8, lr=1e-2))
    batch = next(stream(99, 0))
    trained = model()
    trained.load_state_dict(after)
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


def test_divergence_is_an_error(tmp_path: Path) -> None:
    trained = model()
    with pytest.raises(UsageError, match="diverged"):
        optimize(
            trained,
            lambda batch, _: trained(batch).sum() * float("nan"),
            stream,
            config=OptimizerConfig(steps=2, batch=8),
            pairs=40,
            world=HERE,
            work=tmp_path,
            what="test",
        )


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
