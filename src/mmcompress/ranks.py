"""The processes of one command: torchrun starts them, rank 0 leads, and the others do what it hands out.

Rank 0 runs the command as one process does: it decides, holds the locks, writes and prints. The others wait, and take
part in the stages that share their work. So there is one place where things are decided, and a stage that needs one
process needs no word about the others. What they say to each other is JSON in torch's store and not a collective, for
a collective has a timeout, and a stage of one process may take a day. Tensors go through the one process group of the
command (`distributed.py`).

Nothing here imports torch before several processes are announced: one process does without all of it.
"""

from __future__ import annotations

import os
import re
import signal
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

from mmcompress import errors
from mmcompress.errors import CorruptInputError, MissingRequirementError, MMCompressError, UsageError
from mmcompress.interrupts import Interrupted, ended_by_signals
from mmcompress.strictjson import json_from_text, text_from_json

T = TypeVar("T")
VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What torchrun sets, of what is needed to find the others; `LOCAL_RANK` beside them says which GPU is whose."""
JOIN_SECONDS = 300.0
"""How long the processes of one command wait for each other when they start, on many machines."""
_JOIN_HERE_SECONDS = 20.0
"""The same where all are on this machine and no torchrun starts them."""
_LOOPBACK = re.compile(r"localhost|127(\.\d+){3}|::1")
SEEN_SECONDS = 60.0
"""How long after it was written a file may stay unseen on another node: network file systems cache what is absent."""
GRACE_SECONDS = 30.0
"""How long a process that failed waits for rank 0 to say so: torchrun ends all when the first one has ended."""
_LONGEST_PAUSE = 0.5
_FAILED, _END = "failed", "end"


class LostProcessError(MissingRequirementError):
    """Another process of the command is gone, or its connection."""


class EndedError(Exception):
    """Rank 0 has ended the command, with this exit code: what the others waited for does not come."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


@dataclass(frozen=True)
class Announced:
    """What the environment says of the processes of this command."""

    rank: int
    size: int
    local_rank: int


def announced(environment: Mapping[str, str]) -> Announced | None:
    """The processes that torchrun announces; None for one alone. UsageError for a part of the variables."""
    if environment.get("WORLD_SIZE", "1") == "1" and environment.get("RANK", "0") == "0":
        return None
    hint = "start it with torchrun, which sets them all: torchrun --nproc_per_node 2 -m mmcompress …"
    if missing := [name for name in VARIABLES if not environment.get(name)]:
        given = ", ".join(f"{name}={environment[name]}" for name in VARIABLES if environment.get(name))
        raise UsageError(f"{given} announces several processes, but {', '.join(missing)}: not set", hint)
    names = ("RANK", "WORLD_SIZE", "MASTER_PORT", "LOCAL_RANK")
    try:
        rank, size, _, local_rank = (int(environment.get(name, environment["RANK"])) for name in names)
    except ValueError as error:
        said = ", ".join(f"{name}={environment[name]}" for name in names if name in environment)
        raise UsageError(f"{said}: these must be whole numbers", hint) from error
    if not 0 <= rank < size:
        raise UsageError(f"RANK={rank} is none of WORLD_SIZE={size} processes", hint)
    return Announced(rank, size, local_rank)


class Ranks:
    """This process among those of its command. What the methods wait for has no time limit, but ends with the others:
    rank 0 gets the error of one that failed, the others an EndedError when rank 0 has ended.
    """

    def __init__(self, found: Announced, store: Any) -> None:
        self.rank, self.size, self.local_rank = found.rank, found.size, found.local_rank
        self.together = False
        """Whether all ranks are in the same stage now; if not, rank 0 computes alone."""
        self._store = store
        self._said = 0
        self._others_are_gone = False

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def shared(self, value: T) -> T:
        """Rank 0's value, which JSON can write, on every rank. All ranks call it, in the same order."""
        self._said += 1
        key = f"shared/{self._said}"
        if self.leads:
            self._set(key, value)
            return value
        found: T = self._awaited(key)
        return found

    def collected(self, value: T) -> list[T]:
        """On rank 0 every rank's value, by rank; on the others nothing. All ranks call it, in the same order."""
        self._said += 1
        if not self.leads:
            self._set(f"collected/{self._said}/{self.rank}", value)
            return []
        others = [self._awaited(f"collected/{self._said}/{rank}") for rank in range(1, self.size)]
        return [value, *others]

    def lead(self, command: Callable[[], int]) -> int:
        """Run the command, tell the others its exit code, and return it when they have gone."""
        code = 1
        try:
            code = command()
        finally:
            _end_unasked()
            self._set(_END, code)
            left_group()
            limit = time.monotonic() + (0 if self._others_are_gone else GRACE_SECONDS)
            for rank in range(1, self.size):
                while not self._has(_FAILED) and not self._has(f"gone/{rank}") and time.monotonic() < limit:
                    time.sleep(0.02)
        return code

    def follow(self, take_part: Callable[[Any], None]) -> int:
        """Take part in each task that rank 0 shares until it ends; return its exit code, or that of an own failure.

        Only rank 0 prints an error. It is raised there, too.
        """
        try:
            with ended_by_signals():
                while True:
                    take_part(self.shared(None))
                    self.collected(None)
        except EndedError as ended:
            code = ended.code
        except Interrupted as stop:  # rank 0 was asked too, or loses this one
            code = stop.exit_code
        except BaseException as error:
            code = self._failed(error)
        _end_unasked()
        left_group()
        self._set(f"gone/{self.rank}", code)
        return code

    def _failed(self, error: BaseException) -> int:
        """Tell rank 0 why, and wait for what it makes of it. A LostProcessError follows from what another has told."""
        if not isinstance(error, LostProcessError):
            known = isinstance(error, MMCompressError)
            what = error.what if isinstance(error, MMCompressError) else f"{type(error).__name__}: {error}"
            hint = error.hint if isinstance(error, MMCompressError) else "its traceback stands above"
            kind = type(error).__name__ if known else MissingRequirementError.__name__
            said = what if what.startswith("rank ") else f"rank {self.rank} of {self.size}: {what}"
            told = {"kind": kind, "what": said, "hint": hint}
            self._store.compare_set(_FAILED, "", text_from_json(told))
        left_group()
        limit = time.monotonic() + GRACE_SECONDS
        while not self._has(_END):
            if time.monotonic() > limit:
                raise error
            time.sleep(0.02)
        _end_unasked()
        if not isinstance(error, MMCompressError):
            self._set(f"gone/{self.rank}", 1)
            raise error  # a bug keeps its traceback
        return int(self._awaited(_END))

    def why_lost(self, error: Exception) -> MMCompressError:
        """What to say of a collective that broke: the failure of another rank, where it has told one."""
        limit = time.monotonic() + 1.0
        while self.leads and not self._has(_FAILED) and time.monotonic() < limit:
            time.sleep(0.02)
        if (failure := self._failure()) is not None:
            return failure
        self._others_are_gone = True
        return lost(error)

    def _failure(self) -> MMCompressError | None:
        if not self.leads or not self._has(_FAILED):
            return None
        told = json_from_text(self._store.get(_FAILED))
        kind: type[MMCompressError] = getattr(errors, told["kind"], MissingRequirementError)
        return kind(told["what"], told["hint"])

    def _awaited(self, key: str) -> Any:
        pause = 0.01
        while not self._has(key):
            if (failure := self._failure()) is not None:
                raise failure
            if not self.leads and self._has(_END) and not self._has(key):
                raise EndedError(json_from_text(self._store.get(_END)))
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
        with _told():
            return json_from_text(self._store.get(key))

    def _has(self, key: str) -> bool:
        with _told():
            return bool(self._store.check([key]))

    def _set(self, key: str, value: object) -> None:
        with _told():
            self._store.set(key, text_from_json(value))


def _end_unasked() -> None:
    """torchrun asks all to end when the first one has ended with an error; each has its own exit code to end with."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def lost(error: Exception) -> LostProcessError:
    reason = str(error).split("\n")[0][:200]
    return LostProcessError(
        f"a process of this command is gone, or cannot be reached: {reason}",
        "its own output says why; torchrun --max-restarts 3 starts all again, and they go on at the last state",
    )


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise lost(error) from error


_here: Ranks | None = None


def here() -> Ranks | None:
    """This process among several; None where it is the only one."""
    return _here


def processes() -> int:
    """How many processes share the work of a stage that can be shared."""
    return 1 if _here is None else _here.size


@contextmanager
def joined(found: Announced) -> Iterator[Ranks]:
    """Meet the other processes, and make the process group of the whole command: NCCL for GPUs, Gloo for CPUs.

    Raises LostProcessError where they do not all come.
    """
    global _here
    import torch

    # Before there is a group: the default arguments of its functions keep the group of the moment alive for good, and
    # a gloo thread that is left at the end can abort the process. Optimizers import it too.
    import torch.distributed.nn.functional

    dist: Any = torch.distributed
    try:
        seconds = join_seconds(os.environ)
        base, _, _ = next(iter(dist.rendezvous("env://", timeout=timedelta(seconds=seconds))))
        store = dist.PrefixStore(f"mmcompress/{_round(found, base, seconds)}", base)
        gpus = torch.cuda.is_available()
        backend = "cpu:gloo,cuda:nccl" if gpus else "gloo"
        group = dist.PrefixStore("group", store)
        dist.init_process_group(backend, store=group, rank=found.rank, world_size=found.size)
    except (RuntimeError, ValueError) as error:
        raise LostProcessError(
            f"rank {found.rank} has not met all {found.size} processes within {seconds:.0f} s: {error}",
            "start it with torchrun on every node; GLOO_SOCKET_IFNAME names the network interface to use",
        ) from error
    _here = Ranks(found, store)
    try:
        yield _here
    finally:
        _here = None
        left_group()


def join_seconds(environment: Mapping[str, str]) -> float:
    """How long to wait for the others: a moment for those that nobody but a person at this machine could start."""
    alone = "TORCHELASTIC_RUN_ID" not in environment and _LOOPBACK.fullmatch(environment.get("MASTER_ADDR", ""))
    return _JOIN_HERE_SECONDS if alone else JOIN_SECONDS


def _round(found: Announced, store: Any, seconds: float) -> int:
    """Meet all processes of this start; which start it is, counted by rank 0.

    torchrun may keep its store when it starts all again, with what those before have written, and its own count of
    restarts differs between nodes. So every other rank asks under a name that nobody had before.
    """
    limit = time.monotonic() + seconds

    def pause() -> None:
        if time.monotonic() > limit:
            raise RuntimeError("some did not come")
        time.sleep(0.05)

    if found.rank:
        name = uuid.uuid4().hex
        store.set(f"ask/{found.rank}", name)
        while not store.check([f"round/{name}"]):
            pause()
        number = int(store.get(f"round/{name}"))
        store.set(f"here/{number}/{found.rank}", "")
        return number
    number = int(store.add("rounds", 1))
    for rank in range(1, found.size):
        while not store.check([f"here/{number}/{rank}"]):
            if store.check([f"ask/{rank}"]):  # may be of one that is gone; the new one overwrites it
                store.set(f"round/{store.get(f'ask/{rank}').decode()}", str(number))
            pause()
    return number


def left_group() -> None:
    """Leave the process group, which breaks the collectives that the others wait in. Nothing where it was left."""
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()


def share_of_batch(batch: int, size: int) -> int:
    """What each of `size` processes has of a batch; UsageError where they do not divide it."""
    if batch % size:
        raise UsageError(
            f"optimizer.batch = {batch} pairs a step cannot be shared evenly by {size} processes",
            f"give a multiple of {size}: {batch - batch % size + size}, say",
        )
    return batch // size


def wait_until_seen(there: Callable[[], bool], place: Path) -> None:
    """Wait for what another node has written; CorruptInputError where the nodes do not share the folder."""
    limit = time.monotonic() + SEEN_SECONDS
    while not there():
        if time.monotonic() > limit:
            raise CorruptInputError(
                f"{place} is not what another process of this command wrote there",
                "all nodes must share --out and the folders beside it, under the same paths",
            )
        time.sleep(0.1)
