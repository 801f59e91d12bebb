"""A model repository for NVIDIA's Triton Inference Server: both towers, and an ensemble of them.

Triton serves what a folder a model says in its `config.pbtxt`, a text of the message ModelConfig in model_config.proto
(triton-inference-server/common). Requests that wait are put into one batch (`dynamic_batching`), up to what the graph
takes. The ensemble embeds images and texts of one request; Triton has one batch size a request, so it takes as many
images as texts. Pixels and token ids come from the client, which `mmcompress.data.preprocess` and
`mmcompress.runtime.tokenize` make by the artifact's manifest: no backend of Triton that is used here has either. No
Triton has served these here: the configs are held against its published protobuf.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast, get_args

from mmcompress.artifact import Artifact
from mmcompress.config import Backend, Precision
from mmcompress.errors import UsageError, of_choices, suggestion
from mmcompress.frozen import Config
from mmcompress.lock import locked
from mmcompress.manifest import Graph, Kind, TensorSpec
from mmcompress.places import check_apart, writing
from mmcompress.publish import Ours, drafted, swap_in
from mmcompress.runtime.backends import FOR_TENSORRT, graph_for
from mmcompress.runtime.passport import stated_passport
from mmcompress.runtime.session import Tower

Served = Literal["onnxruntime", "openvino", "tensorrt"]
"""Backends of ours that Triton has too, under the same names."""
_CONFIG = "config.pbtxt"
_WRITTEN = "# Written by mmcompress triton"
_TYPES: Mapping[str, str] = {
    "float32": "TYPE_FP32",
    "float16": "TYPE_FP16",
    "int32": "TYPE_INT32",
    "int64": "TYPE_INT64",
    "int8": "TYPE_INT8",
    "uint8": "TYPE_UINT8",
    "bool": "TYPE_BOOL",
}
"""numpy -> DataType of model_config.proto."""


class Model(Config):
    """One model of the repository, as `triton --json` prints it."""

    name: str
    backend: str
    """`ensemble` for the one that joins the towers."""
    file: str | None
    """Of the artifact; None for an ensemble."""
    max_batch: int
    """0 where the graph takes one fixed shape, its first axis included."""


@dataclass(frozen=True)
class Choice:
    """Which files of an artifact are served, and how."""

    backend: str | None = None
    """An engine's own, or else onnxruntime, if not given."""
    precision: str | None = None
    """The smallest if not given."""
    target: str | None = None
    """Of engines for several GPUs."""
    max_batch: int = 32
    """Of ONNX graphs; an engine has its own."""


def write_repository(
    artifact: Artifact, out: Path, name: str | None = None, choice: Choice | None = None
) -> tuple[Model, ...]:
    """Write NAME-image, NAME-text and NAME into a repository, which may hold other models.

    Raises UsageError for what Triton does not serve, and for a place that is not ours.
    """
    name = name or re.sub(r"[^\w.-]+", "-", artifact.path.resolve().name, flags=re.ASCII)
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name):
        raise UsageError(f"{name!r} is no name for a model", "letters, digits, _ . and -: --name student")
    choice = choice or Choice()
    if choice.precision not in (None, *get_args(Precision)):
        known = of_choices(str(choice.precision), get_args(Precision))
        raise UsageError(f"there is no precision {choice.precision!r}", known)
    served = _served(artifact, choice.backend)
    check_apart(out, [artifact.path])
    texts: dict[str, str] = {}
    models, towers = [], []
    for tower in get_args(Tower):
        if not any(graph.tower == tower for graph in artifact.manifest.graphs):
            continue
        graph = _graph(artifact, tower, served, choice)
        batch, profiles = _batches(artifact, graph, choice.max_batch)
        models.append(Model(name=f"{name}-{tower}", backend=served, file=graph.file, max_batch=batch))
        texts[f"{name}-{tower}"] = _tower_config(artifact, models[-1], graph, profiles)
        towers.append((models[-1], graph))
    if len(towers) == 2 and (towers[0][0].max_batch == 0) == (towers[1][0].max_batch == 0):
        batch = min(model.max_batch for model in models)
        models.append(Model(name=name, backend="ensemble", file=None, max_batch=batch))
        texts[name] = _ensemble_config(models[-1], towers)
    for path in (out, *out.absolute().parents):
        if path.is_file():
            raise UsageError(f"{path} is a file, and a model repository is a folder", "give another --out")
    places = {model.name: out / model.name for model in models}
    for place in places.values():
        _check_ours(place)
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    with locked(*places.values(), reading=[artifact.path]), writing(out):
        for model in models:
            _write(places[model.name], texts[model.name], artifact, model)
    return tuple(models)


def _served(artifact: Artifact, backend: str | None) -> Served:
    """The backend that is asked for, or the one that the artifact is for; UsageError where Triton has none."""
    engine = artifact.manifest.kind is Kind.ENGINE
    if engine and artifact.manifest.facts.get("backend") == "tensorrt-rtx":
        raise UsageError(
            f"Triton has no backend for the TensorRT-RTX engines of {artifact.path}",
            "serve the ONNX artifact, or an engine that was built with --backend tensorrt",
        )
    if artifact.manifest.kind not in (Kind.ONNX, Kind.ENGINE):
        raise UsageError(
            f"{artifact.path} is an artifact of kind {artifact.manifest.kind.value!r}, which Triton does not serve",
            "give one of kind 'onnx' or 'engine': mmcompress export, or build",
        )
    asked = backend or ("tensorrt" if engine else "onnxruntime")
    if asked not in get_args(Served):
        raise UsageError(f"Triton has no backend {asked!r} for these files", of_choices(asked, get_args(Served)))
    if engine != (asked == "tensorrt"):
        kind = artifact.manifest.kind.value
        raise UsageError(f"{asked} serves no artifact of kind {kind!r}", "tensorrt serves engines, the others ONNX")
    return "tensorrt" if engine else "openvino" if asked == "openvino" else "onnxruntime"


def _graph(artifact: Artifact, tower: Tower, served: Served, choice: Choice) -> Graph:
    """The graph of a tower. Engines are for the server's GPU, so which one is said and not looked for here."""
    target, precision = choice.target, cast("Precision | None", choice.precision)
    if served != "tensorrt":
        if target is not None:
            raise UsageError(f"{artifact.path} holds ONNX graphs, which have no target", "leave --target out")
        backend: Backend = served
        return graph_for(artifact, tower, backend, precision)
    engines = [graph for graph in artifact.manifest.graphs if graph.tower == tower]
    targets = sorted({graph.target or "" for graph in engines})
    if target is None and len(targets) > 1:
        raise UsageError(f"{artifact.path} has engines for {', '.join(targets)}", f"say which: --target {targets[0]}")
    fitting = {(graph.precision, graph.activations): graph for graph in engines if target in (None, graph.target)}
    for kind in FOR_TENSORRT:
        if kind in fitting and precision in (None, kind[0]):
            return fitting[kind]
    held = ", ".join(f"{graph.precision} for {graph.target}" for graph in engines)
    raise UsageError(f"{artifact.path} has no such {tower} engine; it holds: {held}", "give --target and --precision")


def _batches(artifact: Artifact, graph: Graph, max_batch: int) -> tuple[int, int]:
    """The largest batch, and the number of optimization profiles of an engine (0 for ONNX)."""
    if any(not spec.shape or spec.shape[0] is not None for spec in (*graph.inputs, *graph.outputs)):
        return 0, 0
    if artifact.manifest.kind is not Kind.ENGINE:
        return max_batch, 0
    passport = stated_passport(artifact.manifest, graph)
    if passport is None or not passport.profiles:
        raise UsageError(
            f"nothing says which batches the engine {graph.file} of {artifact.path} takes", "build it again"
        )
    return max(largest for _, _, largest in passport.profiles), len(passport.profiles)


def _tower_config(artifact: Artifact, model: Model, graph: Graph, profiles: int) -> str:
    """config.pbtxt of one tower."""
    lines = [
        f"{_WRITTEN}: {graph.file}, {graph.precision}, of the artifact {artifact.digest[:16]}",
        f"name: {_quoted(model.name)}",
        f"backend: {_quoted(model.backend)}",
        f"default_model_filename: {_quoted(_filename(model))}",
        f"max_batch_size: {model.max_batch}",
        *(f"input {_tensor(spec.name, spec, model.max_batch > 0)}" for spec in graph.inputs),
        *(f"output {_tensor(spec.name, spec, model.max_batch > 0)}" for spec in graph.outputs),
    ]
    if model.max_batch:
        lines.append("dynamic_batching { }")
    chosen = "".join(f' profile: "{index}"' for index in range(profiles)) if profiles > 1 else ""
    kind = "KIND_GPU" if model.backend == "tensorrt" else "KIND_CPU"
    lines.append(f"instance_group {{ count: 1 kind: {kind}{chosen} }}")
    return "\n".join(lines) + "\n"


def _ensemble_config(model: Model, towers: Sequence[tuple[Model, Graph]]) -> str:
    """config.pbtxt of the ensemble: an input keeps its name unless both towers have it; outputs are called by tower."""
    batched = model.max_batch > 0
    twice = {spec.name for spec in towers[0][1].inputs} & {spec.name for spec in towers[1][1].inputs}
    lines = [
        f"{_WRITTEN}: as many images as texts a request",
        f"name: {_quoted(model.name)}",
        'platform: "ensemble"',
        f"max_batch_size: {model.max_batch}",
    ]
    steps = []
    for tower, graph in towers:
        inputs = {s.name: f"{graph.tower}_{s.name}" if s.name in twice else s.name for s in graph.inputs}
        outputs = {spec.name: f"{graph.tower}_{spec.name}" for spec in graph.outputs}
        lines += [f"input {_tensor(inputs[spec.name], spec, batched)}" for spec in graph.inputs]
        lines += [f"output {_tensor(outputs[spec.name], spec, batched)}" for spec in graph.outputs]
        maps = [("input_map", *pair) for pair in inputs.items()] + [("output_map", *pair) for pair in outputs.items()]
        joined = " ".join(f"{kind} {{ key: {_quoted(own)} value: {_quoted(to)} }}" for kind, own, to in maps)
        steps.append(f"  step {{ model_name: {_quoted(tower.name)} model_version: -1 {joined} }}")
    return "\n".join([*lines, "ensemble_scheduling {", *steps, "}"]) + "\n"


def _tensor(name: str, spec: TensorSpec, batched: bool) -> str:
    """A tensor without its batch axis where Triton adds that; -1 for an axis of any length."""
    if spec.dtype not in _TYPES:
        raise UsageError(f"{spec.name} is of type {spec.dtype}, which is not served", suggestion(spec.dtype, _TYPES))
    axes = spec.shape[1:] if batched else spec.shape
    dims = ", ".join("-1" if axis is None else str(axis) for axis in axes)
    return f"{{ name: {_quoted(name)} data_type: {_TYPES[spec.dtype]} dims: [ {dims} ] }}"


def _quoted(text: str) -> str:
    """A string of protobuf's text format."""
    escaped = "".join(
        c if " " <= c <= "~" and c not in '"\\' else "".join(f"\\{b:03o}" for b in c.encode()) for c in text
    )
    return f'"{escaped}"'


def _filename(model: Model) -> str:
    return "model.plan" if model.backend == "tensorrt" else "model.onnx"


def _check_ours(place: Path) -> None:
    """Raise UsageError unless a model's folder may be written: it is not there, or we wrote it."""
    if place.is_symlink() or (place.exists() and not place.is_dir()):
        raise UsageError(f"{place} exists and is no folder, so it is not overwritten", "give another --name or --out")
    if place.is_dir() and any(place.iterdir()) and not _is_ours(place):
        raise UsageError(
            f"{place} holds what mmcompress did not write, so it is not overwritten", "give another --name or --out"
        )


def _is_ours(place: Path) -> bool:
    """Whether a folder holds what is written here and nothing else; a kill may have removed a part of it."""
    config = place / _CONFIG
    if not config.is_file() or not config.read_text(encoding="utf-8", errors="replace").startswith(_WRITTEN):
        return False
    inside = {path.relative_to(place).as_posix() for path in place.rglob("*")}
    return all(
        re.fullmatch(rf"{re.escape(_CONFIG)}|1|1/model\.(onnx|plan)|1/[^/]+\.onnx\.data", name) for name in inside
    )


_REPOSITORY = Ours(_CONFIG, _is_ours)


def _write(place: Path, config: str, artifact: Artifact, model: Model) -> None:
    """One model, whole or not at all. A graph's weights may lie in a file beside it, by a name that the graph has."""
    with drafted(place, _REPOSITORY) as draft:
        (draft / "1").mkdir()
        (draft / _CONFIG).write_text(config, encoding="utf-8")
        if model.file is not None:
            shutil.copyfile(artifact.file(model.file), draft / "1" / _filename(model))
            for beside in artifact.manifest.files.keys() & {f"{model.file}.data"}:
                shutil.copyfile(artifact.file(beside), draft / "1" / beside)
        swap_in(draft, place, _REPOSITORY)
