"""What is measured: one graph of a delivered artifact, on one backend, with a number of threads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import get_args

from mmcompress.artifact import Artifact
from mmcompress.config import Backend, Precision
from mmcompress.errors import MissingRequirementError, UsageError
from mmcompress.manifest import Graph, Kind
from mmcompress.measure.bench.document import Run
from mmcompress.measure.ceiling import Kernel
from mmcompress.measure.peak import Peak, peaks
from mmcompress.progress import say, track
from mmcompress.runtime.backends import GPU_BACKENDS, available_backends, graph_for, open_session
from mmcompress.runtime.machine import usable_cores
from mmcompress.runtime.session import Session

CPU_PRECISIONS: tuple[Precision, ...] = ("fp32", "int8")
"""CPU runtimes compute FP16 graphs in FP32 with casts around it: a figure that nobody wants."""


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
        """Of one image in the graph: those that we wrote compute less than the architecture has."""
        manifest = self.artifact.manifest
        if manifest.model is not None and manifest.stage in ("export", "build", "verdict"):
            return manifest.model.image_sizes.pooled_macs(manifest.model.embed_dim)
        return manifest.facts.get("macs")

    def open(self) -> Session:
        return open_session(self.artifact, self.graph, self.backend, threads=self.threads)

    def divided(self, streams: int) -> Subject:
        """The same with its threads shared by several streams."""
        return self if self.threads is None else replace(self, threads=self.threads // streams)

    @property
    def run(self) -> Run:
        return Run(row=self.row, backend=self.backend, precision=self.graph.precision)


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
            "pip install 'mmcompress[openvino]' or 'mmcompress[onnxruntime]'; engines need --set "
            "'backends=[\"tensorrt-rtx\"]', or tensorrt",
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
