"""How fast the delivered files are here: every row, backend, precision and batch in one interleaved run.

Two figures from two runs cannot be compared on a machine that does other things too, so nothing is measured alone: the
time of each combination is cut into rounds, every round visits all combinations in a new random order, and a ratio is
taken round by round before it is summed up, with a bootstrap interval over the rounds. Within a round the first call
only brings a combination's weights back into the caches.

Sessions share one process, within a memory budget beyond which the least recently used is closed and opened again.
Peak memory cannot be told apart in a shared process: a child process a graph reports its own. Energy is not measured
here, and throttling only where Linux counts it. The inputs are random, since no graph's time depends on their values.
"""

from __future__ import annotations

import json
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import psutil
from numpy.typing import NDArray

from mmcompress.artifact import Artifact, Graph, Kind
from mmcompress.config import Backend, BenchConfig, Precision
from mmcompress.errors import MissingRequirementError, UsageError
from mmcompress.progress import say, track
from mmcompress.runtime.machine import cpu_model, machine, memory_budget_bytes, throttle_count, usable_cores
from mmcompress.runtime.peak import peak_bytes, random_call
from mmcompress.runtime.session import GPU_BACKENDS, Session, available_backends, graph_for, open_session

if TYPE_CHECKING:
    from mmcompress.pipeline import Job

ROUNDS = 10
WARM_UP_S = 0.4
"""Longest time of warming up, unless two calls take longer."""
CPU_PRECISIONS: tuple[Precision, ...] = ("fp32", "int8")
"""CPU runtimes compute FP16 graphs in FP32 with casts around it: a figure that nobody wants."""


@dataclass(frozen=True, eq=False)
class Subject:
    """One graph on one backend."""

    artifact: Artifact
    graph: Graph
    backend: Backend

    @property
    def row(self) -> str:
        return self.artifact.path.name

    @property
    def key(self) -> tuple[str, str, str]:
        return (str(self.artifact.path), self.graph.file, self.backend)

    @property
    def file_bytes(self) -> int:
        """Of the graph, and of the weights that lie beside it in a file of their own."""
        files = self.artifact.manifest.files
        return sum(entry.bytes for name, entry in files.items() if name.startswith(self.graph.file))

    def name(self) -> dict[str, str]:
        return {"row": self.row, "backend": self.backend, "precision": self.graph.precision}


Timed = tuple[Subject, int]
"""A subject and a batch."""


def bench(job: Job[BenchConfig]) -> None:
    """Stage: write bench.json over every gathered ONNX artifact; the first is the teacher."""
    config = job.config
    report = bench_report(
        job.gathered,
        backends=config.backends,
        batches=config.batches,
        threads=config.threads,
        seconds=config.seconds,
        seed=config.seed,
    )
    (job.draft.path / "bench.json").write_text(json.dumps(report, indent=1, allow_nan=False), encoding="utf-8")


def bench_report(
    artifacts: Sequence[Artifact],
    *,
    backends: Sequence[Backend],
    batches: Sequence[int] = (1, 8),
    threads: int | None = None,
    seconds: float = 1.5,
    seed: int = 0,
) -> dict[str, Any]:
    """Measure the image towers; `seconds` is the time that each combination gets."""
    threads = threads or usable_cores()
    subjects = find_subjects(artifacts, backends)
    load = psutil.getloadavg()[0]
    if load > max(1, usable_cores()):
        say("bench", "bench", f"other programs are busy here (load {load:.1f}): the intervals will be wide")
    throttles = throttle_count()
    peaks = {s.key: _peaks(s, threads, batches) for s in track(subjects, "peak memory", total=len(subjects))}
    rounds, devices = measure(subjects, batches, threads, seconds, seed, peaks)
    throttled = None if throttles is None else throttle_count() != throttles
    return {
        "rows": [
            {
                "row": artifact.path.name,
                "latency": [
                    {
                        "backend": subject.backend,
                        "device": devices[subject.key],
                        "precision": subject.graph.precision,
                        "activations": subject.graph.activations,
                        "batch": batch,
                        "threads": None if subject.backend in GPU_BACKENDS else threads,
                        **summary(np.concatenate(rounds[subject, batch]), batch),
                        "peak_bytes": peaks[subject.key].get(batch),
                        "energy_mj": None,
                        "throttled": throttled,
                    }
                    for subject in subjects
                    for batch in batches
                    if subject.artifact is artifact
                ],
            }
            for artifact in artifacts
        ],
        "ratios": _ratios(subjects, batches, rounds, seed),
        "environment": {**machine(), "load_average_before": load, "seconds": seconds, "rounds": ROUNDS},
    }


def _peaks(subject: Subject, threads: int, batches: Sequence[int]) -> dict[int, int]:
    return peak_bytes(subject.artifact.path, subject.graph.file, subject.backend, threads, batches)


def find_subjects(artifacts: Sequence[Artifact], backends: Sequence[Backend]) -> list[Subject]:
    """Every image graph on every backend that works here; the others are named."""
    if not artifacts:
        raise UsageError("there is no artifact to measure", "put `baseline` or `export` before `bench`")
    reasons = available_backends()
    for backend in backends:
        if reasons[backend] is not None:
            say("bench", "bench", f"{backend} is left out: {reasons[backend]}")
    subjects = []
    for artifact in artifacts:
        for backend in (backend for backend in backends if reasons[backend] is None):
            gpu = backend in GPU_BACKENDS
            if (artifact.manifest.kind is Kind.ENGINE) != gpu:
                continue
            held = {graph.precision for graph in artifact.manifest.graphs if graph.tower == "image"}
            for precision in get_args(Precision) if gpu else CPU_PRECISIONS:
                if precision in held:
                    graph = graph_for(artifact, "image", backend, precision)
                    subjects.append(Subject(artifact, graph, backend))
    if not subjects:
        raise MissingRequirementError(
            f"none of {', '.join(backends)} can run any of the graphs",
            "pip install 'mmcompress[openvino]' or 'mmcompress[onnxruntime]', or give another --backend",
        )
    return subjects


def measure(
    subjects: Sequence[Subject],
    batches: Sequence[int],
    threads: int,
    seconds: float,
    seed: int,
    peaks: dict[tuple[str, str, str], dict[int, int]],
) -> tuple[dict[Timed, list[NDArray[np.float64]]], dict[tuple[str, str, str], str]]:
    """Milliseconds of every call, by combination and round; and the device of each subject."""
    pool = SessionPool(memory_budget_bytes(), threads, peaks)
    combinations: list[Timed] = [(subject, batch) for subject in subjects for batch in batches]
    rounds: dict[Timed, list[NDArray[np.float64]]] = {combination: [] for combination in combinations}
    devices: dict[tuple[str, str, str], str] = {}
    rng = np.random.default_rng(seed)
    try:
        for subject, batch in track(combinations, "warm-up", total=len(combinations)):
            session = pool.session(subject)
            devices[subject.key] = cpu_model() if session.device == "CPU" else session.device
            warm_up(random_call(session, batch))
        for number in track(range(ROUNDS), "latency", total=ROUNDS):
            for index in rng.permutation(len(combinations)):
                subject, batch = combinations[index]
                call = random_call(pool.session(subject), batch, seed + number)
                rounds[subject, batch].append(burst(call, seconds / ROUNDS))
    finally:
        pool.close()
    return rounds, devices


class SessionPool:
    """Sessions that are open within a memory budget; it owns them until `close`."""

    def __init__(self, budget_bytes: int, threads: int, peaks: dict[tuple[str, str, str], dict[int, int]]) -> None:
        self._budget = budget_bytes
        self._threads = threads
        self._peaks = peaks
        self._open: OrderedDict[tuple[str, str, str], tuple[Session, int]] = OrderedDict()

    def session(self, subject: Subject) -> Session:
        """The subject's session, until the next call."""
        if subject.key in self._open:
            self._open.move_to_end(subject.key)
            return self._open[subject.key][0]
        cost = max(self._peaks.get(subject.key, {}).values(), default=3 * subject.file_bytes)
        while self._open and cost + sum(held for _, held in self._open.values()) > self._budget:
            _, (oldest, _) = self._open.popitem(last=False)
            oldest.close()
        session = open_session(subject.artifact, subject.graph, subject.backend, threads=self._threads)
        self._open[subject.key] = (session, cost)
        return session

    def close(self) -> None:
        for session, _ in self._open.values():
            session.close()
        self._open.clear()


def _time_ms(call: Callable[[], object]) -> float:
    start = time.perf_counter_ns()
    call()
    return (time.perf_counter_ns() - start) / 1e6


def warm_up(call: Callable[[], object]) -> int:
    """Call until three calls in a row are within 10% of each other, or the time is up; returns the number of calls."""
    start = time.monotonic()
    times = [_time_ms(call), _time_ms(call)]
    while time.monotonic() - start < WARM_UP_S:
        times.append(_time_ms(call))
        if max(times[-3:]) < 1.1 * min(times[-3:]):
            break
    return len(times)


def burst(call: Callable[[], object], duration_s: float) -> NDArray[np.float64]:
    """Milliseconds of each call within the duration, one at least; the first call is not counted if it is short."""
    start = time.monotonic()
    first = _time_ms(call)
    times = [] if first < 1000 * duration_s else [first]
    while not times or time.monotonic() - start < duration_s:
        times.append(_time_ms(call))
    return np.array(times)


def summary(times_ms: NDArray[np.float64], batch: int) -> dict[str, float | int]:
    """Percentiles of a call's time; throughput is at the mean time, so that slow calls count."""
    p50, p90, p99 = np.quantile(times_ms, [0.5, 0.9, 0.99])
    mean = float(times_ms.mean())
    return {
        "samples": len(times_ms),
        "p50_ms": float(p50),
        "p90_ms": float(p90),
        "p99_ms": float(p99),
        "mean_ms": mean,
        "throughput_ips": 1000 * batch / mean,
    }


def paired_speedup(
    fast: Sequence[NDArray[np.float64]], slow: Sequence[NDArray[np.float64]], seed: int = 0, resamples: int = 2000
) -> tuple[float, tuple[float, float]]:
    """Median over rounds of (slow median / fast median), with its 95% bootstrap interval over the rounds."""
    ratios = np.array([np.median(b) / np.median(a) for a, b in zip(fast, slow, strict=True)])
    draws = np.random.default_rng(seed).integers(0, len(ratios), (resamples, len(ratios)))
    low, high = np.quantile(np.median(ratios[draws], axis=1), [0.025, 0.975])
    return float(np.median(ratios)), (float(low), float(high))


def _ratios(
    subjects: Sequence[Subject],
    batches: Sequence[int],
    rounds: dict[Timed, list[NDArray[np.float64]]],
    seed: int,
) -> list[dict[str, Any]]:
    """Each INT8 graph against the teacher in FP32 on ONNX Runtime, and against the FP32 row before it, same backend."""
    found = []
    for index, subject in enumerate(subjects):
        if subject.graph.precision != "int8":
            continue
        fp32 = [s for s in subjects if s.graph.precision == "fp32"]
        teacher = [s for s in fp32 if s.backend == "onnxruntime" and s.artifact is subjects[0].artifact]
        same = [s for s in subjects[:index] if s in fp32 and s.backend == subject.backend]
        for slower in dict.fromkeys((*teacher[:1], *same[-1:])):
            for batch in batches:
                speedup, interval = paired_speedup(rounds[subject, batch], rounds[slower, batch], seed)
                found.append(
                    {
                        "numerator": subject.name(),
                        "denominator": slower.name(),
                        "batch": batch,
                        "speedup": speedup,
                        "ci95": list(interval),
                    }
                )
    return found
