"""The stages: what each is called, what it takes and makes, and where its function is. Data about functions.

A stage is a function from a config and source artifacts to an artifact. It gets a `Job`, fills the job's draft, and
never sees where its output will lie; `pipeline/run.py` runs it, and publishes the draft.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar, cast

from mmcompress import config
from mmcompress.architecture import DualEncoderConfig
from mmcompress.artifact import Artifact, Draft
from mmcompress.config import StageConfig
from mmcompress.errors import MissingRequirementError
from mmcompress.frozen import Config
from mmcompress.manifest import Kind
from mmcompress.ranks import processes, share_of_batch

C = TypeVar("C", bound=Config)


@dataclass(frozen=True)
class Job(Generic[C]):
    """What a stage is asked to do."""

    config: C
    sources: Mapping[str, Artifact]
    """By role; an optional source that was not given is absent."""
    gathered: tuple[Artifact, ...]
    """Every earlier artifact of the kinds that the stage gathers, in the order of the recipe."""
    draft: Draft
    """What the stage fills in."""
    name: str
    """Of the artifact that is made."""
    work: Path
    """A folder for state to resume from; it survives a kill and is deleted when the artifact is complete."""
    standing: Path | None = None
    """What the same stage made before, verified or not, and the new artifact replaces; None on other ranks."""


@dataclass(frozen=True)
class Stage:
    """Data about a function. `run` is `module:function`, imported when it is needed."""

    name: str
    config: type[StageConfig]
    produces: Kind
    run: str
    consumes: Mapping[str, Kind]
    optional: frozenset[str] = frozenset()
    named: frozenset[str] = frozenset()
    """Optional sources that a recipe has to name; no earlier stage is taken for one."""
    gathers: tuple[Kind, ...] = ()
    reads: tuple[str, ...] = ()
    """The fields of the data table that it depends on; the first is what `--data` of its command gives."""
    captions: frozenset[str] = frozenset()
    """Of these fields, those whose images must have captions or classes of their own."""
    check: str = ""
    """`module:function` of a config and the sources that are there already. It raises for what cannot work, and is
    called before the first stage runs, and again when all sources are there."""
    fits: str = ""
    """As `check`, of a config, the sizes of the checkpoint that the stage starts from, and the sources: for as soon as
    these sizes are known, which may be before there is a checkpoint."""
    together: bool = False
    """Whether the processes of a command share its work; any other stage runs on rank 0 alone."""
    enforce: str = ""
    """`module:function` of a finished artifact and `strict` that raises where a strict run must not go on."""

    def function(self) -> _StageFunction:
        return cast(_StageFunction, self._imported(self.run))

    def refuse_impossible(
        self, built: StageConfig, sources: Mapping[str, Artifact], start: DualEncoderConfig | None = None
    ) -> None:
        """Raise for what cannot work. `start` are the sizes of a checkpoint that is still to be made, if known."""
        if self.together and (optimizer := getattr(built, "optimizer", None)) is not None:
            share_of_batch(optimizer.batch, processes())
        if (device := getattr(built, "device", "auto")) not in ("auto", "cpu"):
            self._imported("mmcompress.distributed:check_device")(device)
        if self.check:
            self._imported(self.check)(built, sources)
        if self.fits and "checkpoint" in sources:
            start = sources["checkpoint"].model
        if self.fits and start is not None:
            self._imported(self.fits)(built, start, sources)

    def _imported(self, place: str) -> Any:
        module, _, name = place.partition(":")
        try:
            imported = importlib.import_module(module)
        except ModuleNotFoundError as error:
            if (error.name or "").startswith("mmcompress"):
                raise
            raise MissingRequirementError(
                f"the stage {self.name!r} needs the Python package {error.name!r}, which is not installed",
                "pip install 'mmcompress[compress]'",
            ) from error
        return getattr(imported, name)


class _StageFunction(Protocol):
    def __call__(self, job: Job[Any]) -> None: ...


STAGES: Mapping[str, Stage] = {
    stage.name: stage
    for stage in (
        Stage(
            "train",
            config.TrainConfig,
            Kind.CHECKPOINT,
            "mmcompress.compress.train.train:train",
            {"embeddings": Kind.EMBEDDINGS},
            optional=frozenset({"embeddings"}),
            reads=("train", "validation"),
            captions=frozenset({"train", "validation"}),
            check="mmcompress.compress.early:check_train",
            together=True,
        ),
        Stage(
            "convert",
            config.ConvertConfig,
            Kind.CHECKPOINT,
            "mmcompress.compress.convert:convert",
            {},
            check="mmcompress.compress.early:check_teacher",
        ),
        Stage(
            "embed",
            config.EmbedConfig,
            Kind.EMBEDDINGS,
            "mmcompress.compress.train.embed:embed",
            {},
            reads=("train",),
            check="mmcompress.compress.early:check_teacher",
            together=True,
        ),
        Stage(
            "import-embeddings",
            config.ImportEmbeddingsConfig,
            Kind.EMBEDDINGS,
            "mmcompress.compress.train.import_embeddings:import_embeddings",
            {},
            reads=("train",),
        ),
        Stage(
            "ensemble",
            config.EnsembleConfig,
            Kind.EMBEDDINGS,
            "mmcompress.compress.train.ensemble:ensemble",
            {},
            gathers=(Kind.EMBEDDINGS,),
        ),
        Stage(
            "distill",
            config.DistillConfig,
            Kind.CHECKPOINT,
            "mmcompress.compress.train.distill:distill",
            {"embeddings": Kind.EMBEDDINGS, "checkpoint": Kind.CHECKPOINT},
            optional=frozenset({"checkpoint"}),
            reads=("train", "validation"),
            captions=frozenset({"validation"}),
            check="mmcompress.compress.early:check_distill",
            together=True,
        ),
        Stage(
            "finetune",
            config.FinetuneConfig,
            Kind.CHECKPOINT,
            "mmcompress.compress.train.finetune:finetune",
            {"checkpoint": Kind.CHECKPOINT},
            reads=("train", "validation", "original", "labels", "templates"),
            captions=frozenset({"train", "validation", "original"}),
            check="mmcompress.compress.train.finetune:check_finetune",
            fits="mmcompress.compress.train.finetune:fits_finetune",
            together=True,
        ),
        Stage(
            "prune",
            config.PruneConfig,
            Kind.CHECKPOINT,
            "mmcompress.compress.prune.prune:prune",
            {"checkpoint": Kind.CHECKPOINT, "embeddings": Kind.EMBEDDINGS},
            reads=("train",),
            check="mmcompress.compress.early:check_prune",
            fits="mmcompress.compress.early:fits_prune",
        ),
        Stage(
            "quantize",
            config.QuantizeConfig,
            Kind.CHECKPOINT,
            "mmcompress.compress.int8.quantize:quantize",
            {"checkpoint": Kind.CHECKPOINT, "ranges": Kind.CHECKPOINT},
            optional=frozenset({"ranges"}),
            named=frozenset({"ranges"}),
            reads=("train", "validation", "labels"),
            fits="mmcompress.compress.early:fits_quantize",
        ),
        Stage(
            "quantize-graphs",
            config.QuantizeGraphsConfig,
            Kind.ONNX,
            "mmcompress.compress.int8.quantize_graphs:quantize_graphs",
            {"graphs": Kind.ONNX},
            reads=("train", "validation", "labels"),
            check="mmcompress.compress.early:check_quantize_graphs",
        ),
        Stage(
            "qat",
            config.QatConfig,
            Kind.CHECKPOINT,
            "mmcompress.compress.int8.qat:qat",
            {"checkpoint": Kind.CHECKPOINT},
            reads=("train", "validation"),
            captions=frozenset({"train", "validation"}),
            check="mmcompress.compress.int8.qat:check_qat",
            together=True,
        ),
        Stage(
            "trace",
            config.TraceConfig,
            Kind.ONNX,
            "mmcompress.compress.trace:trace",
            {},
            check="mmcompress.compress.early:check_teacher",
        ),
        Stage(
            "baseline",
            config.BaselineConfig,
            Kind.ONNX,
            "mmcompress.export.baseline:baseline",
            {},
            check="mmcompress.compress.early:check_teacher",
        ),
        Stage(
            "export",
            config.ExportConfig,
            Kind.ONNX,
            "mmcompress.export.export:export",
            {"checkpoint": Kind.CHECKPOINT},
            check="mmcompress.export.form:check_export",
        ),
        Stage(
            "static",
            config.StaticConfig,
            Kind.BUNDLE,
            "mmcompress.export.static:static",
            {"graphs": Kind.ONNX},
            reads=("train",),
            check="mmcompress.export.static:check_static",
        ),
        Stage(
            "verdict",
            config.VerdictConfig,
            Kind.ONNX,
            "mmcompress.measure.verdict.verdict:verdict",
            {"checkpoint": Kind.CHECKPOINT, "graphs": Kind.ONNX},
            optional=frozenset({"checkpoint", "graphs"}),
            named=frozenset({"graphs"}),
            reads=("validation", "train", "labels"),
            enforce="mmcompress.measure.verdict.ruling:enforce",
            check="mmcompress.measure.early:check_verdict",
        ),
        Stage(
            "build",
            config.BuildConfig,
            Kind.ENGINE,
            "mmcompress.export.build:build",
            {"graphs": Kind.ONNX},
            check="mmcompress.export.build:check_build",
        ),
        Stage(
            "bench",
            config.BenchConfig,
            Kind.REPORT,
            "mmcompress.measure.bench.bench:bench",
            {},
            gathers=(Kind.ONNX,),
            check="mmcompress.measure.early:check_bench",
        ),
        Stage(
            "block-costs",
            config.BlockCostsConfig,
            Kind.REPORT,
            "mmcompress.compress.sizing.costs:block_costs",
            {},
            check="mmcompress.compress.sizing.costs:check_block_costs",
        ),
        Stage(
            "size",
            config.SizeConfig,
            Kind.REPORT,
            "mmcompress.compress.sizing.size:size",
            {"costs": Kind.REPORT},
            check="mmcompress.compress.sizing.size:check_size",
        ),
        Stage(
            "drift",
            config.DriftConfig,
            Kind.REPORT,
            "mmcompress.measure.drift.drift:drift",
            {},
            gathers=(Kind.ONNX,),
            reads=("test", "labels", "templates"),
            check="mmcompress.measure.early:check_answers",
        ),
        Stage(
            "bisect",
            config.BisectConfig,
            Kind.REPORT,
            "mmcompress.measure.bisect.bisect:bisect",
            {"reference": Kind.ONNX, "candidate": Kind.ONNX},
            reads=("test",),
            check="mmcompress.measure.early:check_bisect",
        ),
        Stage(
            "report",
            config.ReportConfig,
            Kind.REPORT,
            "mmcompress.report.report:report",
            {},
            gathers=(Kind.CHECKPOINT, Kind.ONNX, Kind.ENGINE, Kind.REPORT),
        ),
        Stage(
            "page",
            config.PageConfig,
            Kind.BUNDLE,
            "mmcompress.report.page.page:page",
            {"graphs": Kind.ONNX, "beside": Kind.ONNX},
            optional=frozenset({"beside"}),
            named=frozenset({"beside"}),
            reads=("test", "labels"),
            check="mmcompress.report.page.page:check_page",
        ),
    )
}
