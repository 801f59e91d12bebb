"""The bench stage: how fast the delivered files are here, with what a reader needs to believe it.

Every row, backend, precision, thread count and batch is measured in one interleaved run (`interleave.py`), in the
real-time class where that is permitted (`scheduling.py`), and ratios are taken pass by pass (`estimate.py`). What
cannot be interleaved has a phase of its own: concurrent streams, the input pipeline, energy, the ceiling. Peak memory
cannot be told apart in a shared process: a child process a graph reports its own. What the machine did meanwhile is
recorded, and a noisy or throttled run says so (`conditions.py`). The inputs are random, since no graph's time depends
on their values.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mmcompress.artifact import Artifact
from mmcompress.config import EIGHT_BITS, BenchConfig
from mmcompress.measure.bench.document import BenchDocument, BenchEnvironment, BenchRow, RunRatio
from mmcompress.measure.bench.energy import energy_mj, find_meter
from mmcompress.measure.bench.photos import timed_pipeline
from mmcompress.measure.bench.streams import timed_streams
from mmcompress.measure.ceiling import ceilings, share
from mmcompress.measure.document import CallPhases, Ceiling, Latency, Pipeline
from mmcompress.measure.estimate import paired_speedup, round_medians, spread, summary
from mmcompress.measure.interleave import Record, Start, add_round
from mmcompress.measure.peak import Peak, random_call, random_feeds
from mmcompress.measure.subjects import Subject, find_subjects, with_peaks
from mmcompress.progress import say, track
from mmcompress.runtime.conditions import NOISY_SPREAD, Conditions, snapshot
from mmcompress.runtime.encoder import Encoder
from mmcompress.runtime.environment import environment_of
from mmcompress.runtime.gpuclocks import GpuWatch, watch_gpu
from mmcompress.runtime.machine import cpu_model, machine, usable_cores
from mmcompress.runtime.nvml import Gpu
from mmcompress.runtime.scheduling import pinned, realtime

if TYPE_CHECKING:
    from mmcompress.stages import Job

ALONE_S = 0.2
"""Time of the input pipeline of a combination."""
WARM, PHASES = 5, 50
ENERGY_S = 1.5
"""Time over which energy is counted; the counters are updated several times a second at worst."""


@dataclass(eq=False)
class Timed:
    """What was measured of one combination; an entry of the document is made of it."""

    subject: Subject
    batch: int
    streams: int
    record: Record
    throughput_ips: float | None = None
    """Where it is not what a single stream's mean time says."""
    pipeline: Pipeline | None = None
    phases: CallPhases | None = None
    energy_mj: float | None = None
    energy_source: str | None = None


def bench(job: Job[BenchConfig]) -> None:
    """Stage: write bench.json over every gathered ONNX artifact; the first is the teacher."""
    bench_document(job.gathered, job.config).write(job.draft.path / "bench.json")


def bench_document(artifacts: Sequence[Artifact], config: BenchConfig) -> BenchDocument:
    """Measure the image towers, and describe the machine that they were measured on."""
    with pinned(config.pin):
        threads = config.threads or (usable_cores(),)
        subjects = find_subjects(artifacts, config.backends, threads)
        for subject in subjects:
            warn_by_chance(subject)
        subjects = with_peaks(subjects, config.batches)
        watch = watch_gpu(any(subject.threads is None for subject in subjects))
        gpu = watch.gpu
        with realtime(config.priority and max(threads) <= usable_cores()) as priority:
            before = snapshot(gpu)
            measured = interleaved(subjects, config, watch)
            conditions = Conditions(before, snapshot(gpu), priority, config.pin, watch)
            measured += [entry for count in config.streams for entry in concurrent(subjects, count, config)]
            for entry in measured:
                entry.pipeline = pipeline_of(entry, config)
                entry.phases = phases_of(entry)
            reached, no_ceiling = ceilings(subject.kernel for subject in subjects) if config.ceiling else ([], [])
        for entry in measured:
            entry.energy_source, entry.energy_mj = energy_of(entry, gpu)
        meanwhile = conditions.meanwhile([spread(round_medians(e.record.rounds)) for e in measured], usable_cores())
    for sentence in meanwhile.warnings:
        say("bench", "bench", sentence)
    environment = environment_of(
        BenchEnvironment,
        machine(),
        meanwhile,
        gpu_power_limit=gpu.power_limit() if gpu else None,
        warnings=(*meanwhile.warnings, *no_ceiling),
        seconds=config.seconds,
        rounds=config.rounds,
    )

    def row(artifact: Artifact) -> BenchRow:
        own = [entry for entry in measured if entry.subject.artifact is artifact]
        entries = [latency_entry(entry, reached, meanwhile.noise.noisy, conditions.throttled) for entry in own]
        return BenchRow(row=artifact.path.name, latency=tuple(entries))

    return BenchDocument(
        rows=tuple(map(row, artifacts)),
        ratios=tuple(ratios(measured, threads[-1], config.seed)),
        ceiling=tuple(reached),
        environment=environment,
    )


def warn_by_chance(subject: Subject) -> None:
    """A latency is worth nothing if the answers are; NaN and zeros are an error. Where both towers are delivered."""
    artifact, precision = subject.artifact, subject.graph.precision
    held = {graph.precision for graph in artifact.manifest.graphs if graph.tower == "text"}
    texts = precision in held or (bool(held) and precision in EIGHT_BITS)
    if texts and artifact.tokenizer is not None and artifact.preprocessing is not None:
        with Encoder.open(artifact, subject.backend, precision, subject.threads) as encoder:
            encoder.warn_by_chance()


def interleaved(subjects: Sequence[Subject], config: BenchConfig, watch: GpuWatch) -> list[Timed]:
    """Every subject and batch, while a GPU's clock is watched."""
    combinations = [(subject, batch) for subject in subjects for batch in config.batches]
    records = [Record() for _ in combinations]
    for number in track(range(config.rounds), "latency", total=config.rounds):
        add_round(records, combinations, config.seconds / config.rounds, config.seed + number, watch.look)
    return [Timed(subject, batch, 1, record) for (subject, batch), record in zip(combinations, records, strict=True)]


def concurrent(subjects: Sequence[Subject], streams: int, config: BenchConfig) -> Iterator[Timed]:
    """Every subject and batch under so many streams; fewer threads than streams cannot be divided."""
    divisible = [subject for subject in subjects if subject.threads is None or subject.threads >= streams]
    for subject in track(divisible, f"{streams} streams", total=len(divisible)):
        for batch in config.batches:
            opener = subject.divided(streams).open
            rounds, batches_per_s, device = timed_streams(
                opener, streams, batch, config.seconds, config.rounds, config.seed
            )
            record = Record(rounds, [Start(None, None, device)])
            yield Timed(subject, batch, streams, record, throughput_ips=batches_per_s * batch)


def pipeline_of(entry: Timed, config: BenchConfig) -> Pipeline | None:
    """The input pipeline of a single stream, where the artifact says how images are prepared."""
    preprocessing = entry.subject.artifact.preprocessing
    if entry.streams > 1 or preprocessing is None or config.photo is None:
        return None
    with entry.subject.open() as session:
        return timed_pipeline(session, preprocessing, entry.batch, config.photo, ALONE_S)


def phases_of(entry: Timed) -> CallPhases | None:
    """Of a single stream on a GPU: the medians of `PHASES` calls, behind those in which graphs are captured."""
    if entry.streams > 1 or entry.subject.threads is not None:
        return None
    with entry.subject.open() as session:
        feeds = random_feeds(session, entry.batch)
        told = [phases for _ in range(WARM + PHASES) if (phases := session.phases(feeds)) is not None][WARM:]
    if not told:
        return None
    names = CallPhases.model_fields
    return CallPhases(**{name: float(np.median([getattr(phases, name) for phases in told])) for name in names})


def energy_of(entry: Timed, gpu: Gpu | None) -> tuple[str | None, float | None]:
    """Its source and the millijoules of an image; nothing where no sensor can be read."""
    meter = find_meter(gpu, entry.subject.threads is None)
    if meter is None or entry.streams > 1:
        return None, None
    with entry.subject.open() as session:
        spent_mj = energy_mj(meter, random_call(session, entry.batch), entry.batch, ENERGY_S)
    return (None if spent_mj is None else meter.source), spent_mj


def latency_entry(entry: Timed, reached: Sequence[Ceiling], noisy: bool, throttled: bool | None) -> Latency:
    """What bench.json says of one combination."""
    subject, rounds, starts = entry.subject, entry.record.rounds, entry.record.starts
    medians = round_medians(rounds)
    times = dict(summary(entry.record.calls, entry.batch))
    times["throughput_ips"] = entry.throughput_ips or times["throughput_ips"]
    peak = subject.peaks.get(entry.batch, Peak()) if entry.streams == 1 else Peak()
    single = 1000 * entry.batch / times["p50_ms"]
    device = starts[0].device
    return Latency(
        backend=subject.backend,
        device=cpu_model() if device == "CPU" else device,
        precision=subject.graph.precision,
        activations=subject.graph.activations,
        batch=entry.batch,
        threads=subject.threads,
        streams=entry.streams,
        **times,
        load_ms=_median([start.load_ms for start in starts]),
        first_ms=_median([start.first_ms for start in starts]),
        rounds_ms=tuple(medians),
        peak_bytes=peak.process,
        device_peak_bytes=peak.device,
        energy_mj=entry.energy_mj,
        energy_source=entry.energy_source,
        ceiling_share=share(reached, subject.kernel, subject.macs, entry.throughput_ips or single),
        pipeline=entry.pipeline,
        noisy=noisy or spread(medians) > NOISY_SPREAD,
        throttled=throttled,
        phases=entry.phases,
    )


def _median(times_ms: Sequence[float | None]) -> float | None:
    known = [time_ms for time_ms in times_ms if time_ms is not None]
    return float(np.median(known)) if known else None


def ratios(measured: Sequence[Timed], threads: int, seed: int) -> list[RunRatio]:
    """Pairs that a reader asks for, at each batch.

    Each INT8 graph against the teacher in FP32 on ONNX Runtime, and against the FP32 row before it on the same backend;
    and each row against the one before it, on the same backend and in the same precision.
    """
    single = [entry for entry in measured if entry.streams == 1 and entry.subject.threads in (None, threads)]
    asked = []
    for index, entry in enumerate(single):
        mine, first = entry.subject, single[0].subject.artifact
        earlier = [e for e in single[:index] if e.batch == entry.batch and e.subject.artifact is not mine.artifact]
        fp32 = [e for e in earlier if e.subject.graph.precision == "fp32"]
        teacher = [e for e in fp32 if e.subject.backend == "onnxruntime" and e.subject.artifact is first]
        same = [e for e in earlier if e.subject.backend == mine.backend]
        slower = [e for e in same if e.subject.graph.precision == mine.graph.precision][-1:]
        if mine.graph.precision == "int8":
            slower = [*teacher[:1], *[e for e in same if e in fp32][-1:], *slower]
        for other in {id(e): e for e in slower}.values():
            ratio = paired_speedup(entry.record.rounds, other.record.rounds, seed)
            asked.append(
                RunRatio(
                    numerator=mine.run,
                    denominator=other.subject.run,
                    batch=entry.batch,
                    speedup=ratio.speedup,
                    ci95=ratio.ci95,
                    significant=ratio.significant,
                )
            )
    return asked
