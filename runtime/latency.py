"""The bench stage: how fast the delivered files are here, with what a reader needs to believe it.

Every row, backend, precision, thread count and batch is measured in one interleaved run (`interleave.py`), in the
real-time class where that is permitted (`scheduling.py`), and ratios are taken pass by pass (`estimate.py`). What
cannot be interleaved has a phase of its own: concurrent streams, the input pipeline, energy, the ceiling. Peak memory
cannot be told apart in a shared process: a child process a graph reports its own. What the machine did meanwhile is
recorded, and a noisy or throttled run says so (`conditions.py`). The inputs are random, since no graph's time depends
on their values.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from mmcompress.artifact import Artifact, Graph, Kind
from mmcompress.config import Backend, BenchConfig, Precision
from mmcompress.errors import MissingRequirementError, UsageError
from mmcompress.progress import say, track
from mmcompress.runtime.ceiling import Kernel, ceilings, share
from mmcompress.runtime.conditions import NOISY_SPREAD, noise, shares, snapshot, throttled, warnings
from mmcompress.runtime.energy import energy_mj, find_meter
from mmcompress.runtime.estimate import paired_speedup, round_medians, spread, summary
from mmcompress.runtime.interleave import Record, Start, add_round
from mmcompress.runtime.machine import cpu_model, machine, usable_cores
from mmcompress.runtime.nvml import Gpu, open_gpu
from mmcompress.runtime.peak import Peak, peaks, random_call
from mmcompress.runtime.photos import timed_pipeline
from mmcompress.runtime.scheduling import pinned, realtime
from mmcompress.runtime.session import GPU_BACKENDS, Session, available_backends, graph_for, open_session
from mmcompress.runtime.streams import timed_streams

if TYPE_CHECKING:
    from mmcompress.pipeline import Job

CPU_PRECISIONS: tuple[Precision, ...] = ("fp32", "int8")
"""CPU runtimes compute FP16 graphs in FP32 with casts around it: a figure that nobody wants."""
ALONE_S = 0.2
"""Time of the input pipeline of a combination."""
ENERGY_S = 1.5
"""Time over which energy is counted; the counters are updated several times a second at worst."""


@dataclass(frozen=True, eq=False)
class Subject:
    """One graph on one backend, with so many threads."""

    artifact: Artifact
    graph: Graph
    backend: Backend
    threads: int | None
    """None on a GPU."""
    peaks: Mapping[int, Peak] = field(default_factory=dict)
    """By batch."""

    @property
    def row(self) -> str:
        return self.artifact.path.name

    @property
    def file_bytes(self) -> int:
        """Of the graph, and of the weights that lie beside it in a file of their own."""
        files = self.artifact.manifest.files
        return sum(entry.bytes for name, entry in files.items() if name.startswith(self.graph.file))

    @property
    def memory_bytes(self) -> int:
        known = [peak.process for peak in self.peaks.values() if peak.process is not None]
        return max(known, default=3 * self.file_bytes)

    @property
    def kernel(self) -> Kernel:
        return self.backend, self.graph.precision, self.threads

    @property
    def macs(self) -> int | None:
        """Of one image, as the exporter counted them."""
        return self.artifact.manifest.facts.get("macs")

    def open(self) -> Session:
        return open_session(self.artifact, self.graph, self.backend, threads=self.threads)

    def divided(self, streams: int) -> Subject:
        """The same with its threads shared by several streams."""
        return self if self.threads is None else replace(self, threads=max(1, self.threads // streams))

    def name(self) -> dict[str, str]:
        return {"row": self.row, "backend": self.backend, "precision": self.graph.precision}


@dataclass(eq=False)
class Measured:
    """One entry of the report."""

    subject: Subject
    batch: int
    streams: int
    record: Record
    throughput_ips: float | None = None
    """Where it is not what a single stream's mean time says."""
    pipeline: dict[str, float] | None = None
    energy_mj: float | None = None
    energy_source: str | None = None


def bench(job: Job[BenchConfig]) -> None:
    """Stage: write bench.json over every gathered ONNX artifact; the first is the teacher."""
    report = bench_report(job.gathered, job.config)
    (job.draft.path / "bench.json").write_text(json.dumps(report, indent=1, allow_nan=False), encoding="utf-8")


def bench_report(artifacts: Sequence[Artifact], config: BenchConfig) -> dict[str, Any]:
    """Measure the image towers, and describe the machine that they were measured on."""
    with pinned(config.pin):
        threads = config.threads or (usable_cores(),)
        subjects = with_peaks(find_subjects(artifacts, config.backends, threads), config.batches)
        gpu = open_gpu() if any(subject.threads is None for subject in subjects) else None
        slowdowns: set[str] = set()
        with realtime(config.priority and max(threads) <= usable_cores()) as priority:
            before = snapshot(gpu)
            measured = interleaved(subjects, config, gpu, slowdowns)
            after = snapshot(gpu)
            measured += [entry for count in config.streams for entry in concurrent(subjects, count, config)]
            for entry in measured:
                entry.pipeline = pipeline_of(entry, config)
            found, no_ceiling = ceilings(subject.kernel for subject in subjects) if config.ceiling else ([], [])
        for entry in measured:
            entry.energy_source, entry.energy_mj = energy_of(entry, gpu)
    foreign, stolen = shares(before, after, usable_cores())
    was_throttled = throttled(before, after, sorted(slowdowns))
    noisy = noise([spread(round_medians(entry.record.rounds)) for entry in measured], foreign, stolen, priority)
    said = warnings(before, after, noisy, was_throttled, sorted(slowdowns))
    for sentence in said:
        say("bench", "bench", sentence)
    environment = {
        **machine(),
        "gpu_power_limit": gpu.power_limit() if gpu else None,
        "pinned_cores": None if config.pin is None else list(config.pin),
        "priority": "real-time" if priority else "normal",
        "clocks_mhz": {"before": before.clocks_mhz, "after": after.clocks_mhz},
        "temperature_c": {"before": before.temperature_c, "after": after.temperature_c},
        "load_average_before": before.load_average,
        "load_average_after": after.load_average,
        "others_share": foreign,
        "stolen_share": stolen,
        "noise": noisy,
        "warnings": said + no_ceiling,
        "seconds": config.seconds,
        "rounds": config.rounds,
    }
    return {
        "rows": [
            {
                "row": artifact.path.name,
                "latency": [
                    {**entry_document(entry, found, noisy["noisy"]), "throttled": was_throttled}
                    for entry in measured
                    if entry.subject.artifact is artifact
                ],
            }
            for artifact in artifacts
        ],
        "ratios": ratios(measured, threads[-1], config.seed),
        "ceiling": found,
        "environment": environment,
    }


def find_subjects(artifacts: Sequence[Artifact], backends: Sequence[Backend], threads: Sequence[int]) -> list[Subject]:
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
                    subjects += [Subject(artifact, graph, backend, n) for n in ((None,) if gpu else threads)]
    if not subjects:
        raise MissingRequirementError(
            f"none of {', '.join(backends)} can run any of the graphs",
            "pip install 'mmcompress[openvino]' or 'mmcompress[onnxruntime]', or give another --backend",
        )
    return subjects


def with_peaks(subjects: Sequence[Subject], batches: Sequence[int]) -> list[Subject]:
    """The subjects with the peak memory of each graph and backend, at the first of its thread counts."""
    known: dict[tuple[str, str, str], Mapping[int, Peak]] = {}
    for subject in track(subjects, "peak memory", total=len(subjects)):
        key = (str(subject.artifact.path), subject.graph.file, subject.backend)
        if key not in known:
            path, file, backend = subject.artifact.path, subject.graph.file, subject.backend
            known[key] = peaks(path, file, backend, subject.threads or usable_cores(), batches)
    keys = [(str(subject.artifact.path), subject.graph.file, subject.backend) for subject in subjects]
    return [replace(subject, peaks=known[key]) for subject, key in zip(subjects, keys, strict=True)]


def interleaved(
    subjects: Sequence[Subject], config: BenchConfig, gpu: Gpu | None, slowdowns: set[str]
) -> list[Measured]:
    """Every subject and batch; why a GPU held its clocks down is added to `slowdowns`."""
    combinations = [(subject, batch) for subject in subjects for batch in config.batches]
    records = [Record() for _ in combinations]
    for number in track(range(config.rounds), "latency", total=config.rounds):
        add_round(records, combinations, config.seconds / config.rounds, config.seed + number)
        slowdowns.update(gpu.slowdowns() if gpu else ())
    return [Measured(subject, batch, 1, record) for (subject, batch), record in zip(combinations, records, strict=True)]


def concurrent(subjects: Sequence[Subject], streams: int, config: BenchConfig) -> Iterator[Measured]:
    """Every subject and batch under so many streams."""
    for subject in track(subjects, f"{streams} streams", total=len(subjects)):
        for batch in config.batches:
            opener = subject.divided(streams).open
            rounds, batches_per_s, device = timed_streams(
                opener, streams, batch, config.seconds, config.rounds, config.seed
            )
            record = Record(rounds, [Start(float("nan"), float("nan"), device)])
            yield Measured(subject, batch, streams, record, throughput_ips=batches_per_s * batch)


def pipeline_of(entry: Measured, config: BenchConfig) -> dict[str, float] | None:
    """The input pipeline of a single stream, where the artifact says how images are prepared."""
    preprocessing = entry.subject.artifact.preprocessing
    if entry.streams > 1 or preprocessing is None or config.photo is None:
        return None
    with entry.subject.open() as session:
        return timed_pipeline(session, preprocessing, entry.batch, config.photo, ALONE_S)


def energy_of(entry: Measured, gpu: Gpu | None) -> tuple[str | None, float | None]:
    """Its source and the millijoules of an image; nothing where no sensor can be read."""
    meter = find_meter(gpu, entry.subject.threads is None)
    if meter is None or entry.streams > 1:
        return None, None
    with entry.subject.open() as session:
        found = energy_mj(meter, random_call(session, entry.batch), entry.batch, ENERGY_S)
    return (None if found is None else meter.source), found


def entry_document(entry: Measured, found: Sequence[dict[str, Any]], noisy: bool) -> dict[str, Any]:
    """What bench.json says of one combination."""
    subject, rounds, starts = entry.subject, entry.record.rounds, entry.record.starts
    medians = round_medians(rounds)
    figures = summary(entry.record.calls, entry.batch)
    figures["throughput_ips"] = entry.throughput_ips or figures["throughput_ips"]
    peak = subject.peaks.get(entry.batch, Peak()) if entry.streams == 1 else Peak()
    single = 1000 * entry.batch / figures["p50_ms"]
    device = starts[0].device
    return {
        "backend": subject.backend,
        "device": cpu_model() if device == "CPU" else device,
        "precision": subject.graph.precision,
        "activations": subject.graph.activations,
        "batch": entry.batch,
        "threads": subject.threads,
        "streams": entry.streams,
        **figures,
        "load_ms": float(np.median([start.load_ms for start in starts])) if entry.streams == 1 else None,
        "first_ms": float(np.median([start.first_ms for start in starts])) if entry.streams == 1 else None,
        "rounds_ms": medians,
        "peak_bytes": peak.process,
        "device_peak_bytes": peak.device,
        "energy_mj": entry.energy_mj,
        "energy_source": entry.energy_source,
        "ceiling_share": share(found, subject.kernel, subject.macs, entry.throughput_ips or single),
        "pipeline": entry.pipeline,
        "noisy": noisy or spread(medians) > NOISY_SPREAD,
    }


def ratios(measured: Sequence[Measured], threads: int, seed: int) -> list[dict[str, Any]]:
    """Pairs that a reader asks for, at each batch.

    Each INT8 graph against the teacher in FP32 on ONNX Runtime, and against the FP32 row before it on the same backend;
    and each row against the one before it, on the same backend and in the same precision.
    """
    single = [entry for entry in measured if entry.streams == 1 and entry.subject.threads in (None, threads)]
    found = []
    for index, entry in enumerate(single):
        mine, first = entry.subject, single[0].subject.artifact
        earlier = [one for one in single[:index] if one.batch == entry.batch and one.subject.artifact != mine.artifact]
        fp32 = [one for one in earlier if one.subject.graph.precision == "fp32"]
        teacher = [one for one in fp32 if one.subject.backend == "onnxruntime" and one.subject.artifact is first]
        same = [one for one in earlier if one.subject.backend == mine.backend]
        pairs = [one for one in same if one.subject.graph.precision == mine.graph.precision][-1:]
        if mine.graph.precision == "int8":
            pairs = [*teacher[:1], *[one for one in same if one in fp32][-1:], *pairs]
        for slower in {id(one): one for one in pairs}.values():
            ratio = paired_speedup(entry.record.rounds, slower.record.rounds, seed)
            ends = {"numerator": mine.name(), "denominator": slower.subject.name(), "batch": entry.batch}
            found.append({**ends, **ratio.document()})
    return found
