"""What the commands that use an artifact or look at one print."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar, cast

from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.text import Text

from mmcompress.architecture import ImageConfig, TowerConfig
from mmcompress.artifact import Artifact
from mmcompress.cli.console import Summary, about, artifact_summary, empty_table, pairs
from mmcompress.cli.doctor import Diagnosis
from mmcompress.cli.requirements import Check
from mmcompress.cli.show_towers import convolution_lines, transformer_line
from mmcompress.data.tally import printable
from mmcompress.export.triton import Model
from mmcompress.formats import (
    count,
    megabytes,
    millions,
    milliseconds,
    percent,
    percent_interval,
)
from mmcompress.manifest import Kind, Manifest, TensorSpec
from mmcompress.measure.explain.explain import Explanation, says_nothing
from mmcompress.measure.explain.pointing import Pointing
from mmcompress.measure.split.document import DeviceTimes, SplitDocument
from mmcompress.pipeline.searching import Found
from mmcompress.runtime.indexing import Indexed
from mmcompress.runtime.passport import PASSPORTS, stated_passport
from mmcompress.strictjson import text_from_json


def shares_summary(shares: Sequence[tuple[str, float]]) -> Summary:
    """Labels with their probabilities."""
    lines = _aligned([(label, percent(share)) for label, share in shares])
    return [{"label": label, "share": share} for label, share in shares], lines


def matches_summary(found: Found) -> Summary:
    """Images with their cosine similarity to what was looked for; what a model loses that did not make the index."""
    document: object = [{"image": name, "similarity": similarity} for name, similarity in found.matches]
    lines = _aligned([(printable(name), f"{similarity:.3f}") for name, similarity in found.matches])
    if (loss := found.agreement) is not None:
        document = {"matches": document, **asdict(loss)}
        lines.append(f"\nrecall@10 against the index's own model: {loss.recall_at_10:.3f}, of {loss.images} images")
    return document, lines


def index_summary(made: Indexed) -> Summary:
    """An index, and what became of the images that were given."""
    document, view = artifact_summary(made.artifact)
    counts = {"embedded": made.embedded, "moved": made.moved, "copies": made.copies, "damaged": made.damaged}
    lines = ", ".join(f"{count(number)} {what}" for what, number in counts.items())
    images = count(int(made.artifact.manifest.facts["images"]))
    return {**cast(dict[str, object], document), **counts}, Text(f"{view}\n{images} images; of these now {lines}")


def explained_summary(method: str, rows: Sequence[Explanation], out: Path) -> Summary:
    """Cosines, and where the picture is; the maps are in the JSON."""
    document = [{"model": one.name, "cosine": one.cosine, "map": one.map.tolist()} for one in rows]
    lines = _aligned([(one.name, f"{one.cosine:.3f}") for one in rows])
    if silent := [one.name for one in rows if says_nothing(one.map)]:
        lines.append(
            f"\nthe map of {', '.join(silent)} is the same everywhere: nothing in the image speaks for the text"
        )
    return {"method": method, "picture": str(out), "models": document}, Group(lines, Text(f"{out}, by {method}"))


def pointing_summary(method: str, rows: Sequence[Pointing]) -> Summary:
    """How often each model's brightest cell is on what the text names, beside a blind guess."""
    table = empty_table("model", ">hits", ">interval", ">chance", ">pairs", ">not seen", ">flat")
    for one in rows:
        table.add_row(
            one.name,
            percent(one.hits),
            percent_interval(one.interval),
            percent(one.chance),
            count(one.pairs),
            count(one.unseen),
            count(one.flat),
        )
    return {"method": method, "models": [asdict(one) for one in rows]}, table


def _aligned(rows: Sequence[tuple[str, str]]) -> Text:
    width = max((cell_len(name) for name, _ in rows), default=0)
    return Text("\n".join(f"{name}{' ' * (width - cell_len(name))}  {figure:>6}" for name, figure in rows))


_SHOWN, _LINE = 200, 4000
"""Entries of each table, and characters of the config, that are shown: ten times what stages write but for files of
shards. A table of a million lines takes minutes."""
T = TypeVar("T")


def _first(rows: Mapping[str, T], what: str) -> tuple[dict[str, T], str]:
    """Those that are shown, and a line on how many are not."""
    more = f"and of the {what} {len(rows) - _SHOWN:,} more, which --json has" if len(rows) > _SHOWN else ""
    return dict(list(rows.items())[:_SHOWN]), more


def manifest_view(artifact: Artifact) -> RenderableType:
    """A manifest in readable form."""
    manifest = artifact.manifest
    found, unseen = _first({**manifest.facts, **manifest.metrics}, "facts")
    parents, unnamed = _first(manifest.parents, "parents")
    versions, unsaid = _first(manifest.environment, "versions")
    about = pairs(
        {
            "path": str(artifact.path),
            "kind": f"{manifest.kind.value}, made by {manifest.stage}",
            "digest": artifact.digest,
            **_model_lines(artifact),
            **{f"parent {role}": digest for role, digest in parents.items()},
            "config": _short(manifest.config, _LINE),
            **{k: _short(v) for k, v in found.items() if k != PASSPORTS},
            **_passport_lines(artifact),
            "made with": _short(", ".join(f"{name} {version}" for name, version in versions.items()), _LINE),
        }
    )
    listed, unlisted = _first(manifest.files, "files")
    files = empty_table("file", ">size", "SHA-256")
    for name, entry in listed.items():
        files.add_row(name, count(entry.bytes), entry.sha256[:16])
    rest = [Text(line) for line in (unnamed, unseen, unsaid, unlisted) if line]
    if not manifest.graphs:
        return Group(about, files, *rest)
    graphs = empty_table("graph", "tower", "precision", "activations", "for", "input", "output")
    for graph in manifest.graphs[:_SHOWN]:
        sides = (", ".join(map(_spec, graph.inputs)), ", ".join(map(_spec, graph.outputs)))
        graphs.add_row(graph.file, graph.tower, graph.precision, graph.activations, graph.target or "any", *sides)
    return Group(about, files, graphs, *rest)


def pack_summary(manifest: Manifest, path: Path) -> Summary:
    """A file, and which artifact is in it."""
    size, seal = path.stat().st_size, manifest.compute_seal()
    view = Text(
        f"{path}  {manifest.kind.value} made by {manifest.stage}, {megabytes(size)}, digest {manifest.digest[:12]}"
    )
    return {"path": str(path), "bytes": size, "digest": manifest.digest, "seal": seal}, view


def _passport_lines(artifact: Artifact) -> dict[str, str]:
    """What each engine was built on and of; what nobody stated is left out."""
    lines = {}
    for graph in artifact.manifest.graphs if artifact.manifest.kind is Kind.ENGINE else ():
        passport = stated_passport(artifact.manifest, graph)
        if passport is None:
            continue
        built = passport.built_on
        parts = [built.gpu or built.target, f"{built.backend} {built.tensorrt}"]
        parts += [text for text in (built.board, built.jetpack, built.power_mode) if text]
        parts += [f"{built.multiprocessors} multiprocessors"] if built.multiprocessors else []
        parts += [f"driver {built.driver}"] if built.driver else []
        parts += [f"CUDA {built.cuda}"] if built.cuda else []
        parts += [f"batches {low} to {high}, usually {usual}" for low, usual, high in passport.profiles]
        parts += [f"{count(number)} products in {precision}" for precision, number in passport.precisions.items()]
        lines[f"passport of {graph.file}"] = ", ".join(parts)
    return lines


def _model_lines(artifact: Artifact) -> dict[str, str]:
    model = artifact.manifest.model
    if model is None:
        return {}
    lines = {
        "model": f"{count(model.params)} parameters, {millions(model.macs)} MACs an image, {model.embed_dim} dimensions"
    }
    side, image = model.image.image_size, model.image
    lines |= {"image tower": transformer_line(image)} if isinstance(image, TowerConfig) else convolution_lines(image)
    lines["text tower"] = transformer_line(model.text)
    patches = f" in {image.patch}x{image.patch} patches" if isinstance(image, ImageConfig) else ""
    lines["inputs"] = f"{side}x{side} pixels{patches}; {model.text.context} of {count(model.text.vocab)} tokens"
    return lines


def _spec(spec: TensorSpec) -> str:
    axes = ",".join("N" if axis is None else str(axis) for axis in spec.shape)
    return f"{spec.name} ({axes}) {spec.dtype}"


def _short(value: object, limit: int = 300) -> str:
    text = value if isinstance(value, str) else text_from_json(value)
    return text if len(text) <= limit else f"{text[:limit]}… ({count(len(text))} characters)"


def repository_summary(models: Sequence[Model], out: Path) -> Summary:
    """The models of a Triton repository, and how it is served."""
    table = empty_table("model", "backend", "file", ">largest batch")
    for model in models:
        table.add_row(model.name, model.backend, model.file or "", str(model.max_batch or "fixed"))
    serve = Text(f"tritonserver --model-repository={shlex.quote(str(out.absolute()))}")
    return [model.model_dump(mode="json") for model in models], Group(table, serve)


def page_summary(site: Artifact) -> Summary:
    """How large a site is, and how it is looked at: from a file a browser would load no model."""
    size = megabytes(site.manifest.facts["bytes"])
    serve = f"python -m http.server --bind 127.0.0.1 --directory {shlex.quote(str(site.path))} 8000"
    view = Text(f"{site.path}  {size}, digest {site.digest[:12]}\n{serve}   # then open http://127.0.0.1:8000")
    return {**about(site), "serve": serve}, view


def split_summary(made: Artifact, document: SplitDocument | DeviceTimes) -> Summary:
    """Every way to share the work, the chosen one marked; of one device its times."""
    if isinstance(document, DeviceTimes):
        table = empty_table(">blocks", ">first half", ">second half")
        for behind, first, second in zip(document.behind, document.first_ms, document.second_ms, strict=True):
            table.add_row(str(behind), milliseconds(first), milliseconds(second))
        return about(made, times=document), Group(table, Text(f"{made.path}/times.json, of {document.device}"))
    names = list(document.devices)
    table = empty_table(f">blocks on {names[0]}", "sent", ">bytes", f">{names[0]}", ">line", f">{names[1]}")
    table.add_column("all", justify="right")
    table.add_column("")
    for way in document.options:
        times = map(milliseconds, (way.first_ms, way.link_ms, way.second_ms, way.total_ms))
        marks = [word for word, one in (("best", document.best), ("written", document.cut)) if one == way]
        table.add_row(str(way.behind), way.wire or "", count(way.sent_bytes), *times, ", ".join(marks))
    lines = [f"{made.path}: image-first.onnx has {document.cut.behind} blocks"]
    if not document.splits:
        where = names[0] if document.best.sent_bytes == 0 else names[1]
        gain = milliseconds(document.cut.total_ms - document.best.total_ms)
        lines.append(f"splitting is not best: all on {where} is {gain} faster than any cut")
    if document.int8_flips is not None:
        lines.append(f"sent as INT8, {percent(document.int8_flips)} of the images get another best caption")
    if document.measured_ms is not None:
        off = document.measured_ms / document.cut.total_ms - 1
        lines.append(f"over two processes {milliseconds(document.measured_ms)}, {off:+.1%} of the prediction")
    return about(made, split=document), Group(table, Text("\n".join(lines)))


def diagnosis_summary(diagnosis: Diagnosis, checks: Sequence[Check] | None = None) -> Summary:
    """`doctor`'s facts as tables, with what one backend needs where that was asked."""
    cpu = diagnosis.cpu
    cores = "1 core" if cpu.cores == 1 else f"{cpu.cores} cores"
    if cpu.quota is not None:
        cores += f" of the {cpu.quota:g} that its container allows"
    int8 = "unknown" if cpu.int8 is None else ", ".join(cpu.int8) or "none that speeds up INT8"
    about = pairs(
        {
            "mmcompress": f"{diagnosis.mmcompress} on Python {diagnosis.python}, {diagnosis.platform}",
            "processor": f"{cpu.model}, {cores}; {int8}",
            "memory": f"{diagnosis.memory_bytes / (1 << 30):.1f} GiB",
            "GPU": diagnosis.gpu or "none found: engines can be built but not run",
        }
    )
    backends = empty_table("backend", "", "why not")
    for backend in diagnosis.backends:
        backends.add_row(backend.name, "runs" if backend.usable else "no", backend.reason or "")
    extras = empty_table("extra", "installed", "missing", "to install")
    for extra in diagnosis.extras:
        have = ", ".join(f"{name} {version}" for name, version in extra.installed.items())
        lack = ", ".join(p.package + (f" (only where {p.only})" if p.only else "") for p in extra.missing)
        extras.add_row(extra.name, have, lack, extra.command if lack else "")
    document, views = diagnosis.model_dump(mode="json"), [about, backends, extras]
    if checks is not None:
        document["checks"] = [check.model_dump(mode="json") for check in checks]
        table = empty_table("check", "", "found", "to mend")
        for check in checks:
            table.add_row(check.what, check.state, check.found, check.mend or "")
        views.append(table)
    return document, Group(*views)
