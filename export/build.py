"""The build stage: TensorRT engines from ONNX graphs, with an audit of what was compiled.

One builder serves `tensorrt` (10.3 and later, 11) and `tensorrt_rtx`: the module is its argument, and only what all of
them have is used. Networks are strongly typed, so the graph's types are the engine's types; INT8 is explicit Q/DQ and
FP16 is FP16 in the graph. There are no builder flags for precision and no calibrators, which TensorRT 11 removed.

TensorRT-RTX builds ahead of time, for any supported GPU, with no GPU and no driver here; its engines come out the same
byte for byte, those of convolutional towers for one batch size only: for several it orders sizes that depend on the
batch by their addresses, so that two builds have the same kernels and weights, and other names. Classic TensorRT times
its tactics on the GPU that it builds for (`tuning.py`), so its only target is `native`, and two builds may differ. That
path has never been run on a GPU by this project; its test is marked `gpu`.

An engine in which a Linear is not in the 8 bits that its graph asks for is no engine (`audit.py`). Where there is a GPU
to run it, neither is one whose answers are not those of the FP32 graph (`answers.py`).

One engine a target: a joint one for several is as large as that of the oldest of them, to a few bytes, which suggests
that it is compiled for that one, and a device needs only its own. Left out: REFIT, STRIP_PLAN and
VERSION_COMPATIBLE, which fail without a GPU.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from mmcompress.artifact import Artifact
from mmcompress.config import Backend, BuildConfig
from mmcompress.errors import MissingRequirementError, UsageError
from mmcompress.export.answers import check_answers, warn_without_reference
from mmcompress.export.audit import check_audit, quantized_linears, summary_of
from mmcompress.export.document import Audit, AuditDocument
from mmcompress.export.engine import NATIVE, check_precision, checked_targets, engine_from_onnx, supported_targets
from mmcompress.export.sparsity import two_four_weights
from mmcompress.export.tuning import Tuning, timing_cache_of
from mmcompress.manifest import Graph
from mmcompress.progress import say
from mmcompress.runtime.passport import PASSPORTS, Machine, Passport, passport_of
from mmcompress.runtime.tensorrt import machine_for, open_plan, tensorrt_module, this_machine
from mmcompress.seen import SEEN_IMAGES
from mmcompress.stages import Job
from mmcompress.twins import FLOAT_MODEL, float_model

AUDIT = "audit.json"
PREFERRED = (("int8", "signed"), ("fp8", "float"), ("fp16", "float"), ("fp32", "float"))
"""Which graph of a tower is built: INT8 where there is one, and never the unsigned one, which TensorRT refuses."""

_PASSED_ON = ("params", "macs", "logit_scale", "logit_bias")
"""Facts of the graphs that are facts of their engines."""


def check_build(config: BuildConfig, sources: Mapping[str, Artifact]) -> None:
    """Whether this machine's TensorRT builds for the targets, before a teacher is converted for it; and the graphs,
    where they are there."""
    targets = checked_targets(tensorrt_module(config.backend), config.backend, config.targets)
    if NATIVE in targets:
        tuning_of(config, _machine_to_build_on(config.backend))
    if (graphs := sources.get("graphs")) is not None:
        for path in (graphs.file(graph.file) for graph in chosen_graphs(graphs)):
            quantized = quantized_linears(path)
            for target in targets:
                check_precision(path, quantized, target)
        if config.sparse:
            sparse_weights(graphs)


def build(job: Job[BuildConfig]) -> None:
    """Stage: one engine for each tower and target."""
    source, config = job.sources["graphs"], job.config
    trt = tensorrt_module(config.backend)
    targets = checked_targets(trt, config.backend, config.targets)
    eligible = sparse_weights(source) if config.sparse else {}
    machines = {target: machine_for(config.backend, None if target == NATIVE else target) for target in targets}
    here = gpu_here(config.backend)
    cosines: dict[str, float | None] = {}
    passports: dict[str, Passport] = {}
    audits: dict[str, Audit] = {}
    said: dict[str, list[str]] = {}
    if here is not None:
        warn_without_reference(source, chosen_graphs(source))
    for graph in chosen_graphs(source):
        for target in targets:
            engine = engine_from_onnx(
                trt,
                source.file(graph.file),
                graph.inputs,
                target=target,
                batches=config.batches,
                sparse=config.sparse,
                tuning=tuning_of(config, machines[target]),
            )
            machine = machines[target]
            place = machine.target
            file = f"{graph.tower}-{graph.precision}-{place}.engine"
            check_audit(engine.audit, file, config.allow_fallback)
            (job.draft.path / file).write_bytes(engine.plan)
            built = graph.model_copy(update={"file": file, "target": place})
            if here is not None and here.target == place:
                opened = partial(open_plan, job.draft.path / file, built, config.backend)
                cosines[file] = check_answers(source, graph, file, opened)
            audits[file], said[file] = engine.audit, list(engine.sparsity)
            passports[file] = passport_of(
                source,
                graph,
                machine,
                profiles=engine.profiles or (config.batches,),
                precisions=engine.audit.products,
                weights_bytes=engine.audit.weights_bytes,
                reach=config.reach or "this GPU",
            )
            job.draft.graphs.append(built)
            for warning in engine.warnings:
                say("build", file, warning)
            if config.sparse and not engine.sparsity:
                say("build", file, "the builder does not say whether it took a sparse kernel")
    job.draft.inherit(source, SEEN_IMAGES, *([source.tokenizer.file] if source.tokenizer else []))
    AuditDocument.of(audits).write(job.draft.path / AUDIT)
    job.draft.metrics = {"min_cosine": cosines} if cosines else {}
    job.draft.facts = {
        **{key: source.manifest.facts[key] for key in _PASSED_ON if key in source.manifest.facts},
        FLOAT_MODEL: float_model(source),
        "backend": config.backend,
        "tensorrt_version": str(trt.__version__),
        "targets": [graph.target for graph in job.draft.graphs if graph.tower == job.draft.graphs[0].tower],
        "batches": list(config.batches),
        PASSPORTS: {file: passport.model_dump(mode="json") for file, passport in passports.items()},
        **({"two_four": eligible, "sparsity_log": said} if config.sparse else {}),
        "audit": {file: summary_of(audit).model_dump(mode="json") for file, audit in audits.items()},
    }


def _machine_to_build_on(backend: Backend) -> Machine:
    """This machine; MissingRequirementError says what builds without its GPU."""
    try:
        return this_machine(backend)
    except MissingRequirementError as error:
        known = ", ".join(supported_targets(tensorrt_module(backend)))
        if not known:
            raise
        raise MissingRequirementError(
            error.what, f"name the GPUs to build for, which needs none here: --target sm86 (known: {known})"
        ) from error


def gpu_here(backend: Backend) -> Machine | None:
    """The machine, if it has a GPU that engines can be run on."""
    try:
        return this_machine(backend)
    except MissingRequirementError:
        return None


def tuning_of(config: BuildConfig, machine: Machine) -> Tuning:
    """What a build is told, for the machine that it is for; UsageError where a Jetson's engine shall reach further."""
    if config.reach not in (None, "this GPU") and (machine.board or machine.jetpack):
        raise UsageError(
            f"{config.reach!r} is not for {machine.board or 'a Jetson'}: TensorRT has no hardware compatibility there",
            "leave out --reach, and build on each kind of Jetson",
        )
    cached = config.backend == "tensorrt" and config.timing_cache is not False
    return Tuning(
        workspace_mb=config.workspace_mb,
        optimization_level=config.optimization_level,
        reach=config.reach or "this GPU",
        timings=timing_cache_of(machine) if cached else None,
    )


def chosen_graphs(source: Artifact) -> list[Graph]:
    """The graph of each tower that is built."""
    chosen = []
    for tower in ("image", "text"):
        graphs = {(g.precision, g.activations): g for g in source.manifest.graphs if g.tower == tower}
        kind = next((kind for kind in PREFERRED if kind in graphs), None)
        if kind is not None:
            chosen.append(graphs[kind])
    if not chosen:
        held = ", ".join(graph.file for graph in source.manifest.graphs) or "none"
        raise UsageError(
            f"{source.path} has no graph that TensorRT builds; it holds: {held}",
            'export it in "int8", "fp8", "fp16" or "fp32"; the unsigned INT8 file is for CPUs',
        )
    return chosen


def sparse_weights(source: Artifact) -> dict[str, list[str]]:
    """Of each graph that is built, the Linears whose weights sparse kernels could take; at least one in all."""
    linears = {graph.file: two_four_weights(source.file(graph.file)) for graph in chosen_graphs(source)}
    if not any(linears.values()):
        raise UsageError(
            f"no Linear of {source.path} is 2:4 sparse, and sparse = true was asked for",
            'prune with sparsity = "2:4" first, or leave `sparse` out',
        )
    return linears
