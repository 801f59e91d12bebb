"""The one training loop: AdamW, warm-up and cosine, averaged weights, and a resume that changes nothing.

Every random choice is a function of (seed, step or epoch, sample), so the state to resume from is the weights, their
average, AdamW's own tensors and the step (`state.py`). A run that is killed, or told to stop, and resumed by as many
processes ends with the very bytes of one that was not.

A step whose loss or gradient is not finite is skipped: the weights stay, and the schedule goes on. All ranks decide by
figures that are reduced over them, in one all-reduce that also says whether one of them was told to stop.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn

from mmcompress.compress.heap import return_freed_memory
from mmcompress.compress.products import fast_products
from mmcompress.compress.train.meter import Figures, metered
from mmcompress.compress.train.state import (
    Position,
    StateWriter,
    check_finite_tensors,
    restored,
    training_tensors,
)
from mmcompress.compress.train.stopping import told_to_stop
from mmcompress.compress.train.watching import Watch
from mmcompress.config import OptimizerConfig
from mmcompress.distributed import World, average_gradients, mean_over_ranks, of_first_rank
from mmcompress.errors import StoppedError, UsageError
from mmcompress.progress import say


class Keyed(Protocol):
    """A batch that can say which samples it holds."""

    @property
    def keys(self) -> Sequence[str]: ...


B = TypeVar("B", bound=Keyed)
Loss = Tensor | Mapping[str, Tensor]
"""A scalar, or the terms that it is the sum of."""
ALIKE: Mapping[str, float] = {}
"""All parameters at the same learning rate."""
_NAMED = 8
"""Samples that a message names."""
_RETURNED = 64
"""Steps after which freed memory goes back to the system."""


def total_steps(config: OptimizerConfig, pairs: int) -> tuple[int, int]:
    """(steps in all, steps an epoch) for a number of training pairs."""
    if pairs < config.batch:
        raise UsageError(
            f"a batch of {config.batch} pairs was asked for, and there are {pairs}", "give a smaller batch"
        )
    an_epoch = pairs // config.batch
    return config.steps or max(1, round(config.epochs * an_epoch)), an_epoch


def learning_rate(step: int, steps: int, config: OptimizerConfig) -> float:
    """Linear warm-up, then half a cosine to zero (Loshchilov & Hutter 2017, equation 5)."""
    warmup = max(1, round(config.warmup * steps))
    if step < warmup:
        return config.lr * (step + 1) / warmup
    return config.lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def optimize(
    model: nn.Module,
    loss_of: Callable[[B, float], Loss],
    stream: Callable[[int, int], Iterator[B]],
    *,
    config: OptimizerConfig,
    pairs: int,
    world: World,
    work: Path,
    what: str,
    watch: Watch | None = None,
    scales: Mapping[str, float] = ALIKE,
) -> dict[str, float | None]:
    """Train the model in place; return what the run took.

    `stream(epoch, skip)` yields the batches of an epoch after the first `skip`; `loss_of(batch, done)` is a scalar, or
    the terms that add up to one, by name, of a batch when a share of the steps is done. `scales` are factors on the
    learning rate of parameters, by name, which is 1 where it is not said. With `config.ema` the model ends with the
    averaged weights, and with those that were the best where they are watched.

    Raises StoppedError when SIGTERM or SIGUSR1 came, with the state written; UsageError where training diverged.
    """
    steps, an_epoch = total_steps(config, pairs)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = _optimizer(trained, config, scales)
    average = {name: p.detach().clone() for name, p in trained.items()} if config.ema else {}
    best = {name: p.detach().clone() for name, p in trained.items()} if watch and watch.keep_best else {}
    tensors = training_tensors(trained, {"average": average, "best": best}, optimizer)
    of_first_rank([*model.parameters(), *model.buffers()], world)
    at = restored(work, tensors, world)
    if at.step and world.rank == 0:
        say("", work.name, f"goes on after step {at.step} of {steps}")
    mixed = config.precision == "bfloat16" or (config.precision == "auto" and computes_bfloat16(world.device))
    compiled = any(module._compiled_call_impl is not None for module in model.modules())
    batches = _batches(stream, at.step, steps, an_epoch)
    with (
        told_to_stop() as asked,
        StateWriter(work, world, config.save_minutes) as states,
        metered(what, steps, at.step, config, world) as meter,
    ):
        with meter.waiting():
            upcoming = next(batches, None)
        while upcoming is not None and not (watch and watch.over(at)):
            batch = upcoming
            rate = learning_rate(at.step, steps, config)
            optimizer.zero_grad(set_to_none=True)
            with nullcontext() if compiled else fast_products():
                with torch.autocast(world.device.type, torch.bfloat16, enabled=mixed):
                    terms = _named(loss_of(batch, at.step / steps))
                    loss = sum(terms.values(), next(iter(terms.values())).new_zeros(()))
                loss.backward()
            average_gradients(trained.values(), world)
            norm = nn.utils.clip_grad_norm_(trained.values(), config.clip)
            told = (loss.new_tensor(float(asked.by is not None)), norm, loss, *terms.values())
            reduced = mean_over_ranks(torch.stack([figure.detach().float() for figure in told]), world)
            with meter.waiting():  # while a GPU computes: what follows needs its figures
                upcoming = next(batches, None)
            stop, size, of_all, *by_term = reduced.tolist()
            figures = Figures(size, of_all, dict(zip(terms, by_term, strict=True)))
            if figures.finite:
                _update(optimizer, rate, trained, average, min(config.ema, (1 + at.step) / (10 + at.step)))
                at.loss, at.in_a_row = figures.loss, 0
            else:
                at.skipped, at.in_a_row = at.skipped + 1, at.in_a_row + 1
                _tell_of_skipped(at, batch, figures.loss, config.max_skipped, world, what)
            at.step += 1
            if watch and watch.due(at.step, steps):
                watch.look(at, steps, trained, average, best, world)
            if stop:
                states.write_now(at, tensors)
                raise StoppedError(
                    f"{what} was told to stop ({asked.by or 'another process was'}) after step {at.step} of {steps}; "
                    "its state is written",
                    "give the same command again: it goes on there",
                )
            states.write_when_due(at, tensors)
            if at.step % _RETURNED == 0:
                return_freed_memory()
            meter.tell(at.step, at.skipped, figures, rate)
    with torch.no_grad():
        for name, weight in (best or average).items():
            trained[name].copy_(weight)
    if at.loss is None:
        raise UsageError("training diverged: no step had a finite loss and gradient", "lower the learning rate")
    check_finite_tensors(tensors)
    if at.skipped and world.rank == 0:
        say("", work.name, f"warning: {at.skipped} of {steps} steps were skipped, as they were not finite")
    measured = {} if watch is None or at.best is None else {f"best_{watch.figure}": at.best, "best_step": at.best_step}
    return {
        "steps": at.step,
        "skipped": at.skipped,
        "loss": at.loss,
        **measured,
        "seconds": meter.seconds,
        "images_per_s": meter.images_per_s,
    }


def _update(
    optimizer: torch.optim.Optimizer,
    rate: float,
    trained: Mapping[str, Tensor],
    average: Mapping[str, Tensor],
    decay: float,
) -> None:
    """One step of AdamW at a learning rate, and of the average."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["scale"]
    optimizer.step()
    for name, mean in average.items():
        mean.lerp_(trained[name].detach(), 1 - decay)


def _named(loss: Loss) -> Mapping[str, Tensor]:
    return loss if isinstance(loss, Mapping) else {"loss": loss}


def _tell_of_skipped(at: Position, batch: Keyed, loss: float, most: int, here: World, what: str) -> None:
    """Say which samples the first skipped step had; raise UsageError at the one that is too many."""
    if at.skipped > 1 and at.in_a_row < most:
        return
    keys = here.of_all(batch.keys)
    samples = ", ".join(keys[:_NAMED]) + (f" and {len(keys) - _NAMED} more" if len(keys) > _NAMED else "")
    if at.in_a_row >= most:
        raise UsageError(
            f"{what} diverged: the loss or its gradient was not finite in {most} steps in a row, the last of them "
            f"step {at.step + 1}, with a loss of {loss} on the samples {samples}",
            "lower the learning rate, or look at these samples; a state that was written stays",
        )
    if here.rank == 0:
        say("", what, f"step {at.step + 1} is skipped: its loss is {loss} or its gradient is not finite ({samples})")


def computes_bfloat16(device: torch.device) -> bool:
    """Whether the processor multiplies bfloat16 matrices faster than float32: Ampere and later, or AMX.

    AVX512_BF16 alone does not: without AMX a step of the demo takes longer in bfloat16 than in float32.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    amx = getattr(torch.cpu, "_is_amx_tile_supported", None)  # private, so it may go
    return device.type == "cpu" and amx is not None and bool(amx())


def _optimizer(
    trained: Mapping[str, nn.Parameter], config: OptimizerConfig, scales: Mapping[str, float]
) -> torch.optim.AdamW:
    """One group for each pair of a decay and a factor on the learning rate."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {(config.weight_decay, 1.0): [], (0.0, 1.0): []}
    for name, parameter in trained.items():
        is_matrix = parameter.ndim >= 2 and not name.endswith(("positions", "tokens.weight"))
        decay = config.weight_decay if is_matrix else 0.0
        groups.setdefault((decay, scales.get(name, 1.0)), []).append(parameter)
    return torch.optim.AdamW(
        [{"params": some, "weight_decay": decay, "scale": scale} for (decay, scale), some in groups.items()],
        lr=config.lr,
        betas=(0.9, 0.98),
        eps=1e-6,
        fused=True,
    )  # CLIP's, Radford et al. 2021, table 18


def _batches(stream: Callable[[int, int], Iterator[B]], first: int, steps: int, an_epoch: int) -> Iterator[B]:
    """Batches first … steps - 1."""
    step = first
    while step < steps:
        epoch, skip = divmod(step, an_epoch)
        got = 0
        for batch in stream(epoch, skip):
            yield batch
            step, got = step + 1, got + 1
            if step == steps or step % an_epoch == 0:
                break
        if not got:
            raise UsageError(
                "the training data ended early: fewer pairs can be read than were counted", "check the shards"
            )
