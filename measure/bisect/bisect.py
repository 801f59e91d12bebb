"""Where does a quantized or half-precision model leave its FP32 reference? Module by module, on real samples.

Errors add up on their way through a network, so a tensor deep inside is wrong for the sins of all that came before it.
Therefore every module is judged by itself: it is fed what the FP32 graph feeds it, as the candidate's file computes it,
Q/DQ included, and its output is compared with FP32's. That is its local error. The error that had accumulated there in
the whole candidate is reported beside it.

A module is not bad because it is noisy: 8 bits cost a tensor with outliers more than one without. So the local noise is
divided by the noise that 8 bits have to make there, quantizing FP32's own weights and inputs with our own arithmetic
and the best of a few ranges. What is left, `excess_db`, is 0 for a module that is as good as its numbers allow, and
orders the list: a wrong scale anywhere stands out, whatever the module's nature.

Signal and noise are summed over the samples, so memory does not depend on their number. The padding behind the end of a
text is left out: nothing reads it and nobody calibrated it. Left out too: how much a module's noise matters for the
embedding, which is the sensitivity that `quantize` measures.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mmcompress.artifact import Artifact
from mmcompress.config import Backend, BisectConfig
from mmcompress.errors import UsageError
from mmcompress.int8 import fake_quantize_weight
from mmcompress.manifest import Graph
from mmcompress.measure.bisect.cuts import (
    GIVEN,
    Opened,
    border_module,
    check_same_checkpoint,
    common_borders,
    cut,
    opened_session,
    with_outputs,
)
from mmcompress.measure.bisect.document import BisectBlock, BisectDocument, BisectModule, BisectSide
from mmcompress.measure.bisect.noise import FLOOR, Sums, decibels, needed_noise, rows_of
from mmcompress.measure.bisect.samples import samples_of
from mmcompress.runtime.backends import available_backends, default_backend, graph_for
from mmcompress.runtime.session import Session, Tower

if TYPE_CHECKING:
    from mmcompress.stages import Job

TOWERS: tuple[Tower, ...] = ("image", "text")
STANDS_OUT_DB = 6.0
"""A module twice as far off as it has to be, in amplitude, is kept in higher precision."""
FAIR_SHARES = 3.0
"""So is one that makes more than this many times its fair share of its tower's noise."""
Array = NDArray[Any]


def bisect(job: Job[BisectConfig]) -> None:
    """Stage: write bisect.json for a candidate against its FP32 reference."""
    document = bisect_document(job.sources["reference"], job.sources["candidate"], job.config)
    document.write(job.draft.path / "bisect.json")


def bisect_document(reference: Artifact, candidate: Artifact, config: BisectConfig) -> BisectDocument:
    """The modules of both towers, the worst first, and which of them to keep in higher precision."""
    if config.data.test is None:
        raise UsageError("there are no samples: data.test is not set", "set [data] test, or give --data")
    if reference.manifest.model != candidate.manifest.model:
        raise UsageError(
            f"{reference.path} and {candidate.path} are models of different sizes",
            "bisect compares two exports of one checkpoint, in FP32 and in another precision",
        )
    backend = config.backend or first_backend()
    graphs = {
        tower: (
            graph_for(reference, tower, backend, "fp32"),
            graph_for(candidate, tower, backend, config.precision),
        )
        for tower in TOWERS
    }
    if all(
        reference.manifest.files[full.file] == candidate.manifest.files[other.file] for full, other in graphs.values()
    ):
        raise UsageError(
            f"{reference.path} and {candidate.path} hold the same graphs, so nothing can leave the reference",
            "give the FP32 export of a checkpoint, and its export in INT8 or FP16",
        )
    modules: list[BisectModule] = []
    blocks: list[BisectBlock] = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        bisections = {}
        for tower, (full, other) in graphs.items():
            files = reference.file(full.file), candidate.file(other.file)
            bisections[tower] = TowerBisection(tower, files, (full, other), backend, folder, stack)
        samples = 0
        for pixels, tokens, mask in samples_of(reference, config):
            bisections["image"].add({bisections["image"].feed: pixels}, None)
            bisections["text"].add({bisections["text"].feed: tokens}, mask)
            samples += len(pixels)
    for bisection in bisections.values():
        modules += bisection.modules()
        blocks += bisection.blocks()
    modules.sort(key=lambda module: (not _audible(module), -module.excess_db, module.local_sqnr_db))
    return BisectDocument(
        reference=BisectSide(row=reference.path.name, precision="fp32"),
        candidate=BisectSide(row=candidate.path.name, precision=graphs["image"][1].precision),
        backend=backend,
        samples=samples,
        modules=tuple(modules),
        blocks=tuple(blocks),
        keep=tuple(kept(modules)),
    )


def first_backend() -> Backend:
    """ONNX Runtime where it is installed: it takes graphs of many inputs and outputs at once."""
    return "onnxruntime" if available_backends()["onnxruntime"] is None else default_backend()


def kept(modules: Iterable[BisectModule]) -> list[str]:
    """What to keep in higher precision, worst first: what stands out by its excess, then by its share of the noise."""
    noisy = [module for module in modules if _audible(module)]
    fair = {tower: 1 / max(1, sum(module.tower == tower for module in noisy)) for tower in TOWERS}
    wrong = [module for module in noisy if module.excess_db > STANDS_OUT_DB]
    noisy = [module for module in noisy if module not in wrong and module.share > FAIR_SHARES * fair[module.tower]]
    return [module.module for module in (*wrong, *sorted(noisy, key=lambda module: -module.share))]


def _audible(module: BisectModule) -> bool:
    """Whether there is more noise than half precision would make anyway."""
    return module.local_sqnr_db < decibels(1, FLOOR)


class TowerBisection:
    """One tower: three sessions on the same samples, and what came of them. The stack that it is given closes them."""

    def __init__(
        self,
        tower: Tower,
        files: tuple[Path, Path],
        graphs: tuple[Graph, Graph],
        backend: Backend,
        folder: Path,
        stack: ExitStack,
    ) -> None:
        reference, candidate = (Opened.read(file, tower) for file in files)
        self.tower, self.feed = tower, graphs[0].inputs[0].name
        self._backend, self._folder, self._stack = backend, folder, stack
        check_same_checkpoint(reference, candidate)
        self._borders = common_borders(reference, candidate)
        self._products = candidate.products
        makers = {node.output[0]: node for node in reference.proto.graph.node}
        self._weights = {name: reference.constant(makers[name].input[1]) for name in self._products if name in makers}
        self._fitted = {n: fake_quantize_weight(w, self._products[n].kind) for n, w in self._weights.items()}
        self._full = stack.enter_context(self._session(with_outputs(reference, self._borders), graphs[0], "full"))
        self._whole = stack.enter_context(self._session(with_outputs(candidate, self._borders), graphs[1], "whole"))
        self._cut: Session | None = None
        self._candidate, self._graph = candidate, graphs[1]
        self._modules = [border_module(name, tower) or "" for name in self._borders]
        self._local = {module: Sums() for module in self._modules}
        self._carried = {module: Sums() for module in self._local}
        self._needed = dict.fromkeys(self._local, 0.0)

    def _session(self, proto: Any, like: Graph, name: str, ranks: Mapping[str, int] | None = None) -> Session:
        file = self._folder / f"{self.tower}-{name}.onnx"
        return opened_session(proto, file, like, self._backend, ranks or {}, self._borders)

    def _cut_session(self, reference: Mapping[str, Array]) -> Session:
        """Opened with the first batch, which says how many axes each tensor has."""
        if self._cut is None:
            ranks = {name: reference[name].ndim for name in self._borders}
            cut_graph = cut(self._candidate, ranks)
            self._cut = self._stack.enter_context(self._session(cut_graph, self._graph, "cut", ranks))
        return self._cut

    def add(self, feeds: Mapping[str, Array], mask: NDArray[np.bool_] | None) -> None:
        """One batch; of the tokens of a text only those that `mask` (N, T) names."""
        reference = self._full.run(feeds)
        whole = self._whole.run(feeds)
        session = self._cut_session(reference)
        types = {spec.name: spec.dtype for spec in session.inputs}
        with np.errstate(over="ignore"):  # what does not fit into FP16 is infinite, as in the candidate itself
            given = {GIVEN + name: reference[name].astype(types[GIVEN + name]) for name in self._borders}
        local = session.run({**feeds, **given})
        for name, module in zip(self._borders, self._modules, strict=True):
            if np.issubdtype(reference[name].dtype, np.floating):
                truth = rows_of(reference[name], mask)
                self._local[module].add(truth, rows_of(local[name], mask))
                self._carried[module].add(truth, rows_of(whole[name], mask))
        for name, weight in self._weights.items():
            inputs = rows_of(reference[self._products[name].reads], mask)
            self._needed[border_module(name, self.tower) or ""] += needed_noise(
                inputs, weight, self._fitted[name], self._products[name].kind
            )

    def modules(self) -> list[BisectModule]:
        """A row for each module, in order of execution."""
        total = sum(min(sums.ratio, 1 / FLOOR) for sums in self._local.values())
        return [
            BisectModule(
                module=module,
                tower=self.tower,
                local_sqnr_db=decibels(1, sums.ratio),
                local_cosine_mean=sums.cosine,
                excess_db=self._excess(module, sums),
                carried_sqnr_db=decibels(1, self._carried[module].ratio),
                share=min(sums.ratio, 1 / FLOOR) / total if total else 0.0,
            )
            for module, sums in self._local.items()
        ]

    def _excess(self, module: str, sums: Sums) -> float:
        """Noise over the noise that is needed, in decibels; neither counts below what half precision makes."""
        needed = self._needed[module] / sums.signal if sums.signal else 0.0
        return decibels(max(sums.ratio, FLOOR), max(needed, FLOOR))

    def blocks(self) -> list[BisectBlock]:
        """The error that the candidate carries at the end of each block."""
        ends = {module.rpartition(".")[0]: sums for module, sums in self._carried.items() if ".blocks." in module}
        return [
            BisectBlock(
                block=block,
                tower=self.tower,
                carried_cosine_mean=sums.cosine,
                carried_sqnr_db=decibels(1, sums.ratio),
            )
            for block, sums in ends.items()
        ]
