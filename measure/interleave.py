"""The measuring loop: rounds of short, interleaved visits to everything that is to be compared.

A shared machine slows down and speeds up all the time, so nothing is measured alone. In a round every session is opened
anew, in random order, and warmed up until its calls are steady; then come many passes for each batch. A pass visits all
combinations of that batch in a random order, and the next pass goes the same way back, so that a drift favours nobody.
The first call of a visit only brings the weights back into the caches. `estimate.py` says what becomes of the times.

Visits are as short as they can be, because the noise is not white. On two shared cores the times of calls of 1.5 ms had
an autocorrelation of 0.9 at one call's distance, 0.8 at ten and 0.6 at a hundred: of two equal sessions that took turns
after each call, rounds of 250 calls differed by 0.3%, after 8 calls by 1.4%, after 64 by 6%.

Sessions are opened again because where their memory lies makes one of two equal sessions faster by up to some percent
for as long as it is open: a run with one session each would call that a difference. They share one process, within a
memory budget; where it does not hold all of them, the least recently used is closed, and a round has a single pass.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Protocol

import numpy as np
from typing_extensions import Self

from mmcompress.measure.estimate import Times
from mmcompress.measure.peak import random_call
from mmcompress.progress import track
from mmcompress.runtime.machine import memory_budget_bytes
from mmcompress.runtime.session import Session

VISIT_S = 0.003
"""Time of a visit, in which one call at least is counted."""
LONG_S = 0.02
"""A first call that takes longer is counted: cold caches do not matter to it, and the time does."""
WARM_UP_S = 0.05
"""Longest time of warming up, unless two calls take longer."""
REST = 0.1
"""Pause after a visit, as a share of it: real-time threads that never rest are stopped for 50 ms a second by Linux."""


class Contender(Protocol):
    """What takes part in a comparison."""

    def open(self) -> Session: ...

    @property
    def memory_bytes(self) -> int:
        """What its session is expected to hold."""


Combination = tuple[Contender, int]
"""A contender and a batch."""


@dataclass
class Start:
    """How long opening a session took, and the first call after it; None where several were opened together."""

    load_ms: float | None
    first_ms: float | None
    device: str


@dataclass
class Record:
    """What was measured of one combination."""

    rounds: list[list[Times]] = field(default_factory=list)
    starts: list[Start] = field(default_factory=list)

    @property
    def calls(self) -> Times:
        return np.concatenate([times for passes in self.rounds for times in passes])


def no_look() -> None:
    """Nobody watches."""


def add_round(
    records: Sequence[Record],
    combinations: Sequence[Combination],
    seconds: float,
    seed: int,
    look: Callable[[], None] = no_look,
) -> None:
    """Measure one round, of `seconds` a combination, and add it to each one's record; `look` is called behind the last
    call, while sessions are open."""
    rng = np.random.default_rng(seed)
    contenders = list(dict.fromkeys(contender for contender, _ in combinations))
    batches = list(dict.fromkeys(batch for _, batch in combinations))
    passes: list[list[Times]] = [[] for _ in combinations]
    with SessionPool(memory_budget_bytes()) as pool:
        whole = pool.holds(contenders)
        for number in rng.permutation(len(contenders)) if whole else ():
            pool.open(contenders[number])
        for number in rng.permutation(len(batches)):
            members = [index for index, (_, batch) in enumerate(combinations) if batch == batches[number]]
            for index in _visits(members, rng, seconds * len(members), whole):
                passes[index].append(burst(pool.call(*combinations[index], seed=seed), VISIT_S if whole else seconds))
        look()
        for record, times, (contender, batch) in zip(records, passes, combinations, strict=True):
            record.rounds.append(times)
            record.starts.append(pool.start(contender, batch))


def add_rounds(
    records: Sequence[Record],
    combinations: Sequence[Combination],
    seconds: float,
    rounds: tuple[int, int],
    seed: int,
    what: str,
    decided: Callable[[], bool] = lambda: False,
    look: Callable[[], None] = no_look,
) -> None:
    """Measure rounds, between the fewest and the most, until it is `decided`."""
    fewest, most = rounds
    for done in track(range(1, most + 1), what, total=most):
        add_round(records, combinations, seconds, seed + done, look)
        if done >= fewest and decided():
            break


def _visits(members: list[int], rng: np.random.Generator, duration_s: float, many: bool) -> Iterator[int]:
    """The members in a random order and in its mirror image, while there is time; once only if not `many`."""
    start = time.monotonic()
    while True:
        order = [int(index) for index in rng.permutation(members)]
        yield from order
        if not many:
            return
        yield from reversed(order)
        if time.monotonic() - start >= duration_s:
            return


class SessionPool:
    """Sessions that are open within a memory budget; it owns them until it is closed."""

    def __init__(self, budget_bytes: int) -> None:
        self._budget = budget_bytes
        self._open: OrderedDict[Contender, tuple[Session, dict[int, Callable[[], object]]]] = OrderedDict()
        self._load_ms: dict[Contender, float] = {}
        self._devices: dict[Contender, str] = {}
        self._first_ms: dict[tuple[Contender, int], float] = {}

    def holds(self, contenders: Sequence[Contender]) -> bool:
        """Whether all of them may be open at once."""
        return sum(contender.memory_bytes for contender in contenders) <= self._budget

    def open(self, contender: Contender) -> tuple[Session, dict[int, Callable[[], object]]]:
        """Its session and the calls that were made ready on it, until the next call of this method."""
        if contender in self._open:
            self._open.move_to_end(contender)
            return self._open[contender]
        while self._open and not self.holds([*self._open, contender]):
            _, (oldest, _) = self._open.popitem(last=False)
            oldest.close()
        start = time.perf_counter_ns()
        session = contender.open()
        self._load_ms[contender] = (time.perf_counter_ns() - start) / 1e6
        self._devices[contender] = session.device
        self._open[contender] = (session, {})
        return self._open[contender]

    def call(self, contender: Contender, batch: int, seed: int) -> Callable[[], object]:
        """A call of its session, warmed up."""
        session, calls = self.open(contender)
        if batch not in calls:
            calls[batch] = random_call(session, batch, seed)
            self._first_ms[contender, batch] = time_ms(calls[batch])
            warm_up(calls[batch])
        return calls[batch]

    def start(self, contender: Contender, batch: int) -> Start:
        return Start(self._load_ms[contender], self._first_ms[contender, batch], self._devices[contender])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for session, _ in self._open.values():
            session.close()
        self._open.clear()


def time_ms(call: Callable[[], object]) -> float:
    start = time.perf_counter_ns()
    call()
    return (time.perf_counter_ns() - start) / 1e6


def warm_up(call: Callable[[], object]) -> int:
    """Call until three calls in a row are within 10% of each other, or the time is up; returns the number of calls."""
    start = time.monotonic()
    times = [time_ms(call), time_ms(call)]
    while time.monotonic() - start < WARM_UP_S:
        times.append(time_ms(call))
        if max(times[-3:]) < 1.1 * min(times[-3:]):
            break
    return len(times)


def burst(call: Callable[[], object], duration_s: float) -> Times:
    """Milliseconds of each call within the duration, one at least; the first call is not counted if it is short."""
    start = time.monotonic()
    first = time_ms(call)
    times = [] if first < 1000 * LONG_S else [first]
    while not times or time.monotonic() - start < duration_s:
        times.append(time_ms(call))
    time.sleep(REST * (time.monotonic() - start))
    return np.array(times)
