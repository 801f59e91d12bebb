"""The one training loop: AdamW, warm-up and cosine, averaged weights, and a resume that changes nothing.

Every random choice is a function of (seed, step or epoch, sample), so the state to resume from is the weights, their
average, the two moments and the step. It is written beside the artifact, swapped in whole, and a run that is killed and
resumed ends with the very bytes of one that was not.
"""

from __future__ import annotations

import hashlib
import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mmcompress.config import OptimizerConfig
from mmcompress.distributed import World, average_gradients, broadcast
from mmcompress.errors import UsageError
from mmcompress.progress import track

B = TypeVar("B")
_STATE = "state.safetensors"


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
    loss_of: Callable[[B, int], Tensor],
    stream: Callable[[int, int], Iterator[B]],
    *,
    config: OptimizerConfig,
    pairs: int,
    world: World,
    work: Path,
    what: str,
) -> dict[str, float]:
    """Train the model in place; return what the run took.

    `stream(epoch, skip)` yields the batches of an epoch after the first `skip`; `loss_of(batch, epoch)` is a scalar.
    With `config.ema` the model ends with the averaged weights.
    """
    steps, an_epoch = total_steps(config, pairs)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = _optimizer(trained, config)
    average = {name: p.detach().clone() for name, p in trained.items()} if config.ema else {}
    first = _restore(work, trained, average, optimizer) if world.leads else 0
    first = _alike(model, trained, average, optimizer, first, world)
    mixed = config.precision == "bfloat16" or (config.precision == "auto" and computes_bfloat16(world.device))
    start = saved = time.monotonic()
    seen = 0
    batches = _batches(stream, first, steps, an_epoch)
    loss = torch.zeros(())
    for step, (epoch, batch) in enumerate(track(batches, what, steps, first), first):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, config)
        with torch.autocast(world.device.type, torch.bfloat16, enabled=mixed):
            loss = loss_of(batch, epoch)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        loss = average_gradients(trained.values(), loss, world)
        nn.utils.clip_grad_norm_(trained.values(), config.clip)
        optimizer.step()
        decay = min(config.ema, (1 + step) / (10 + step))
        for name, mean in average.items():
            mean.lerp_(trained[name].detach(), 1 - decay)
        seen += config.batch
        if world.rank == 0 and time.monotonic() - saved > 60 * config.save_minutes:
            _save(work, step + 1, trained, average, optimizer)
            saved = time.monotonic()
    with torch.no_grad():
        for name, mean in average.items():
            trained[name].copy_(mean)
    if not torch.isfinite(loss):
        raise UsageError(f"training diverged: the loss is {loss.item()}", "lower the learning rate")
    seconds = time.monotonic() - start
    return {"steps": steps, "loss": loss.item(), "seconds": seconds, "images_per_s": seen / seconds if seconds else 0.0}


def computes_bfloat16(device: torch.device) -> bool:
    """Whether the processor multiplies bfloat16 matrices faster than float32: Ampere and later, or AMX.

    AVX512_BF16 alone does not: without AMX a step of the demo takes longer in bfloat16 than in float32.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    amx = getattr(torch.cpu, "_is_amx_tile_supported", None)  # private, so it may go
    return device.type == "cpu" and amx is not None and bool(amx())


def _optimizer(trained: dict[str, nn.Parameter], config: OptimizerConfig) -> torch.optim.AdamW:
    matrices = [p for name, p in trained.items() if p.ndim >= 2 and not name.endswith(("positions", "tokens.weight"))]
    decayed = {id(p) for p in matrices}
    others = [p for p in trained.values() if id(p) not in decayed]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(
        groups, lr=config.lr, betas=(0.9, 0.98), eps=1e-6, fused=True
    )  # CLIP's, Radford et al. 2021, table 18


def _batches(
    stream: Callable[[int, int], Iterator[B]], first: int, steps: int, an_epoch: int
) -> Iterator[tuple[int, B]]:
    """Batches first … steps - 1, with the epoch of each."""
    step = first
    while step < steps:
        epoch, skip = divmod(step, an_epoch)
        got = 0
        for batch in stream(epoch, skip):
            yield epoch, batch
            step, got = step + 1, got + 1
            if step == steps or step % an_epoch == 0:
                break
        if not got:
            raise UsageError(
                "the training data ended early: fewer pairs can be read than were counted", "check the shards"
            )


def _save(
    work: Path,
    step: int,
    trained: dict[str, nn.Parameter],
    average: dict[str, Tensor],
    optimizer: torch.optim.Optimizer,
) -> None:
    tensors = {"step": torch.tensor(step)}
    for name, parameter in trained.items():
        tensors[f"weight/{name}"] = parameter.detach()
        for moment in ("exp_avg", "exp_avg_sq"):
            tensors[f"{moment}/{name}"] = optimizer.state[parameter][moment]
    tensors |= {f"average/{name}": mean for name, mean in average.items()}
    partial = work / f"{_STATE}.tmp"
    save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, partial)
    with partial.open("rb") as written:
        os.fsync(written.fileno())
    partial.replace(work / _STATE)


def _restore(
    work: Path, trained: dict[str, nn.Parameter], average: dict[str, Tensor], optimizer: torch.optim.Optimizer
) -> int:
    """Load the state of an interrupted run into place; return the step to go on from."""
    path = work / _STATE
    if not path.is_file():
        return 0
    tensors = load_file(path)
    step = int(tensors["step"])
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(tensors[f"weight/{name}"])
            optimizer.state[parameter] = {
                "step": torch.tensor(float(step)),
                "exp_avg": tensors[f"exp_avg/{name}"].to(parameter.device),
                "exp_avg_sq": tensors[f"exp_avg_sq/{name}"].to(parameter.device),
            }
        for name, mean in average.items():
            mean.copy_(tensors[f"average/{name}"])
    return step


def _alike(
    model: nn.Module,
    trained: dict[str, nn.Parameter],
    average: dict[str, Tensor],
    optimizer: torch.optim.Optimizer,
    first: int,
    world: World,
) -> int:
    """Give every rank the weights and the state that rank 0 has made or restored; the step that all go on from.

    Broadcast, as only rank 0 need see the file. That all have the very same is checked: a trained rank that is averaged
    with a fresh one would be noticed by nobody.
    """
    if world.size == 1:
        return first
    first = world.shared(first)
    world.agree("model", [f"{name} {tuple(p.shape)}" for name, p in model.named_parameters()])
    for parameter in trained.values() if first and not world.leads else ():
        optimizer.state[parameter] = {
            "step": torch.tensor(float(first)),
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": torch.zeros_like(parameter),
        }
    moments = [optimizer.state[p][name] for p in trained.values() if first for name in ("exp_avg", "exp_avg_sq")]
    state = [*model.parameters(), *model.buffers(), *average.values(), *moments]
    broadcast(state, world)
    digest = hashlib.sha256()
    for tensor in state:
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    world.agree(f"state at step {first}", digest.hexdigest())
    return first
