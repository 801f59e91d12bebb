"""The state to resume from: every tensor that a step changes, and how far the run is.

A file a save, `state-000123.safetensors` after 123 steps, synced and swapped in whole; the last two are kept. A state
holds a SHA-256 of its tensors, so one that was damaged is found out and the one before is taken. What is not finite is
never written: the run ends with an error, and the last good state stays. Rank 0 reads and writes; what it read, all
ranks get from it. A save copies the tensors, which the others wait for; the file is written while training goes on.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from typing_extensions import Self

from mmcompress.distributed import World, of_first_rank
from mmcompress.errors import UsageError
from mmcompress.progress import say
from mmcompress.strictjson import json_from_text, text_from_json

_KEPT = 2
_UNREADABLE = (SafetensorError, OSError, KeyError, TypeError, ValueError)


@dataclass
class Position:
    """How far a run is."""

    step: int = 0
    """Steps that are done, those that were skipped too."""
    skipped: int = 0
    """Steps whose loss or gradient was not finite."""
    in_a_row: int = 0
    """Of these, the ones since the last step that was not skipped."""
    loss: float | None = None
    """Of the last step that was not skipped."""
    best: float | None = None
    """Highest figure that was measured on validation pairs; None where none was."""
    best_step: int = 0
    """The steps that were done then."""
    since_best: int = 0
    """Measurements since then."""


def training_tensors(
    trained: Mapping[str, nn.Parameter], others: Mapping[str, Mapping[str, Tensor]], optimizer: torch.optim.AdamW
) -> dict[str, Tensor]:
    """Every tensor that a step changes in place, by name: weights, AdamW's moments and count of updates, and `others`
    by what they are, an average say.

    AdamW would make its own at its first step; here they are made at once, so that they are there to be loaded into.
    """
    tensors: dict[str, Tensor] = {}
    for name, parameter in trained.items():
        own = {
            "step": torch.zeros((), device=parameter.device),
            "exp_avg": torch.zeros_like(parameter, requires_grad=False),
            "exp_avg_sq": torch.zeros_like(parameter, requires_grad=False),
        }
        optimizer.state[parameter] = own
        tensors[f"weight/{name}"] = parameter.detach()
        tensors |= {f"{part}/{name}": tensor for part, tensor in own.items()}
    return tensors | {f"{part}/{name}": own for part, named in others.items() for name, own in named.items()}


def check_finite_tensors(tensors: Mapping[str, Tensor]) -> None:
    """Raise UsageError that names the first tensor with a number that is NaN or infinite.

    A sum is finite only where every part is, and takes a tenth of the time of looking at each.
    """
    if not tensors:
        return
    sums = torch.stack([tensor.sum(dtype=torch.float32) for tensor in tensors.values()]).tolist()
    for (name, tensor), total in zip(tensors.items(), sums, strict=True):
        if not abs(total) < float("inf") and not torch.isfinite(tensor).all():
            raise UsageError(
                f"training diverged: {name} is not finite, so nothing is written; what was written before stays",
                "lower the learning rate",
            )


class StateWriter:
    """Writes states into a folder, one at a time, while the training goes on. Closing it waits for the last one.

    Every rank has one, and that of rank 0 writes. It raises UsageError for tensors that are not finite, and of a file
    that could not be written when the next one is due.
    """

    def __init__(self, work: Path, here: World, every_minutes: float) -> None:
        self._work, self._here, self._every_s = work, here, 60 * every_minutes
        self._saved = time.monotonic()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="state")
        self._pending: Future[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._thread.shutdown()
        if error is None:
            self._wait()

    def write_when_due(self, position: Position, tensors: Mapping[str, Tensor]) -> None:
        """Copy the tensors and have them written, where it is time and the file before is written."""
        busy = self._pending is not None and not self._pending.done()
        if self._here.rank == 0 and not busy and time.monotonic() - self._saved > self._every_s:
            self._hand_over(position, tensors)

    def write_now(self, position: Position, tensors: Mapping[str, Tensor]) -> None:
        """Write, and return on every rank when it is on the disk."""
        if self._here.rank == 0:
            self._hand_over(position, tensors)
            self._wait()
        self._here.shared(position.step)

    def _hand_over(self, position: Position, tensors: Mapping[str, Tensor]) -> None:
        self._wait()
        check_finite_tensors(tensors)
        copies = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
        about = {"position": text_from_json(asdict(position)), "world_size": str(self._here.size)}
        self._pending = self._thread.submit(_write, self._work, position.step, copies, about)
        self._saved = time.monotonic()

    def _wait(self) -> None:
        if self._pending is None:
            return
        try:
            self._pending.result()
        except (OSError, SafetensorError) as error:
            raise UsageError(
                f"the state to resume from cannot be written to {self._work}: {error}",
                "make room, and give the same command again: it goes on at the last state that was written",
            ) from error


def restored(work: Path, tensors: Mapping[str, Tensor], here: World) -> Position:
    """Load the newest whole state of a folder into the tensors of every rank; return where it stands.

    Without one the tensors stay as they are, those of rank 0 on every rank, and the position is the beginning. That all
    have the very same is checked: a trained rank that is averaged with a fresh one would be noticed by nobody.
    """
    position = Position()
    if here.rank == 0:
        for path in reversed(_states(work)):
            try:
                position = _load(path, tensors, here.size)
                break
            except _UNREADABLE as error:
                say("", path.name, f"this state is damaged, and the one before it is taken if there is one: {error}")
                path.replace(path.with_suffix(".damaged"))
    position = Position(**here.shared(asdict(position)))
    if here.size > 1:
        here.agree("model", [f"{name} {tuple(tensor.shape)}" for name, tensor in tensors.items()])
        of_first_rank(tensors.values(), here)
        here.agree(f"state at step {position.step}", _sha256({n: t.cpu().contiguous() for n, t in tensors.items()}))
    return position


def _write(work: Path, step: int, tensors: Mapping[str, Tensor], about: Mapping[str, str]) -> None:
    partial = work / "state.tmp"
    save_file(dict(tensors), partial, {**about, "sha256": _sha256(tensors)})
    with partial.open("rb") as written:
        os.fsync(written.fileno())
    partial.replace(work / f"state-{step:06d}.safetensors")
    for older in _states(work)[:-_KEPT]:
        older.unlink()


def _load(path: Path, tensors: Mapping[str, Tensor], world_size: int) -> Position:
    """Copy a state into the tensors when everything of it was checked. Raises one of _UNREADABLE for a damaged one."""
    with safe_open(path, "pt") as file:
        about = file.metadata()
    found = load_file(path)
    if _sha256(found) != about["sha256"]:
        raise ValueError("its content does not match its SHA-256")
    if {name: t.shape for name, t in found.items()} != {name: t.shape for name, t in tensors.items()}:
        raise ValueError("it has other tensors than this model")
    position = Position(**json_from_text(about["position"]))
    with torch.no_grad():
        for name, tensor in tensors.items():
            tensor.copy_(found[name])
    if (before := int(about["world_size"])) != world_size:
        say(
            "",
            path.name,
            f"warning: the state is of {before} process{'es' if before > 1 else ''}, and this run has {world_size}: "
            "its result will differ a little from an uninterrupted run's",
        )
    return position


def _states(work: Path) -> list[Path]:
    """The states of a folder, the newest last."""
    return sorted(work.glob("state-*.safetensors"), key=lambda path: int(path.stem.removeprefix("state-")))


def _sha256(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
