"""What commands print on stdout: rich tables for people, or with `--json` one compact document on the last line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from mmcompress.artifact import Artifact
from mmcompress.formats import (
    ABSENT,
    BACKENDS,
    compact,
    cosine,
    count,
    megabytes,
    millions,
    milliseconds,
    percent,
    percent_interval,
    times,
)
from mmcompress.manifest import TensorSpec
from mmcompress.strictjson import read_json, text_from_json

LINE = 120
_AGAIN = "make it again: delete the folder and rerun the command that wrote it"
Summary = tuple[object, RenderableType]
"""What `--json` prints, and what people see."""


def show(document: object, view: RenderableType, as_json: bool) -> None:
    """Print the document as JSON, or else its view."""
    if as_json:
        print(text_from_json(document, compact=True))
    else:
        out = Console(highlight=False, markup=False)
        if not out.is_terminal:
            out = Console(highlight=False, markup=False, width=LINE)
        out.print(view, soft_wrap=isinstance(view, Text))


def artifact_summary(artifact: Artifact) -> Summary:
    """What a command made."""
    manifest = artifact.manifest
    size = sum(entry.bytes for entry in manifest.files.values())
    document = {
        "path": str(artifact.path),
        "kind": manifest.kind.value,
        "stage": manifest.stage,
        "digest": artifact.digest,
        "files": {name: entry.bytes for name, entry in manifest.files.items()},
        "facts": manifest.facts,
        "metrics": manifest.metrics,
    }
    return document, Text(f"{artifact.path}  {manifest.kind.value}, {megabytes(size)}, digest {artifact.digest[:12]}")


def prune_summary(artifact: Artifact) -> Summary:
    """What pruning left, and of a latency what was asked and what was measured."""
    document, made = artifact_summary(artifact)
    facts = artifact.manifest.facts
    lines = [f"left: {percent(facts['macs_share'])} of the MACs, {percent(facts['params_share'])} of the parameters"]
    for tower in artifact.manifest.metrics.get("towers", {}).values():
        if "asked" in tower:
            asked, measured, backend = tower["asked"], tower["measured"], tower["backend"]
            lines.append(f"latency on {backend}: {measured:.3f}x measured, {asked:.3f}x asked")
    return document, Group(made, *map(Text, lines))


def qat_summary(artifact: Artifact) -> Summary:
    """What training brought, by graph and tower."""
    document, made = artifact_summary(artifact)
    facts = artifact.manifest.facts["qat"]
    lost = percent(facts["r10_lost_before"])
    if not facts["trained"]:
        return document, Group(made, Text(f"not trained: INT8 loses {lost} of the R@10 hits"))
    table = _table("activations", "tower", ">drift before", ">trained", "")
    for kind, towers in facts["parts"].items():
        for tower, taken in towers.items():
            figures = (compact(facts[when][kind][tower], 3) for when in ("drift_before", "drift_after"))
            table.add_row(kind, tower, *figures, "taken" if taken else "not closer, left as it was")
    return document, Group(table, made)


def run_summary(artifacts: Mapping[str, Artifact]) -> Summary:
    """The artifacts of a recipe, and the report where it made one."""
    made = {
        name: {"path": str(a.path), "kind": a.manifest.kind.value, "digest": a.digest} for name, a in artifacts.items()
    }
    reports = [artifact for artifact in artifacts.values() if artifact.manifest.stage == "report"]
    if not reports:
        return {"artifacts": made, "report": None}, Group(*(artifact_summary(a)[1] for a in artifacts.values()))
    document, view = report_summary(reports[-1])
    return {"artifacts": made, "report": document}, view


def drift_summary(artifact: Artifact) -> Summary:
    """What drift measured, a line for each row."""
    document = read_json(artifact.file("drift.json"), _AGAIN)
    table = _table("row", ">top-1", ">R@10", "95%", ">change", ">cosine", ">worst", ">flips", ">lost", ">old index")
    for row in document["rows"]:
        metrics, old = row["metrics"], row["metrics"]["old_index"]
        change = metrics["r10_change"]
        table.add_row(
            row["row"],
            percent(metrics["top1"]),
            percent(metrics["i2t_r10"]),
            percent_interval(metrics["ci95"].get("i2t_r10")),
            f"{100 * change['i2t']:+.1f}{'' if change['significant'] else ' n.s.'}" if change else "",
            cosine(metrics["cosine_mean"]),
            cosine(metrics["cosine_worst"]),
            percent(metrics["flip_rate"]),
            percent(metrics["flips_lost"]),
            percent(old["i2t_r10"] if old else None),
        )
    notes = [
        f"{r['row']}: {r['collapsed']}, so its figures say nothing" for r in document["rows"] if r.get("collapsed")
    ]
    about = f"{artifact.path}  against {document['rows'][0]['row']}, {count(document['rows'][0]['images'])} images"
    made, _ = artifact_summary(artifact)
    return {**cast(dict[str, Any], made), "drift": document}, Group(table, *map(Text, notes), Text(about))


def bisect_summary(artifact: Artifact, most: int = 12) -> Summary:
    """The worst modules, and which to keep."""
    document = read_json(artifact.file("bisect.json"), _AGAIN)
    table = _table("module", ">excess, dB", ">local SQNR, dB", ">carried, dB", ">share of noise")
    for found in document["modules"][:most]:
        figures = [f"{found[key]:.1f}" for key in ("excess_db", "local_sqnr_db", "carried_sqnr_db")]
        table.add_row(found["module"], *figures, percent(found["share"]))
    names = ", ".join(document["keep"]) or "none: no module is noisier than its precision makes it"
    made, _ = artifact_summary(artifact)
    return {**cast(dict[str, Any], made), "bisect": document}, Group(
        table, Text(f"keep in higher precision: {names}"), Text(str(artifact.path))
    )


def verdict_summary(artifact: Artifact) -> Summary:
    """FP32, FP16 and INT8 side by side, and which to ship."""
    document = read_json(artifact.file("verdict.json"), _AGAIN)
    table = _table(
        "precision", "on", ">size", ">image, p50", ">speed-up", "95%", ">text, p50", ">speed-up", ">R@10 lost", ">flips"
    )
    for row in document["rows"]:
        ratios = [row[tower]["against_fastest_float"] for tower in ("image", "text")]
        moved = row["drift"] or {}
        table.add_row(
            row["precision"].upper(),
            BACKENDS[row["backend"]],
            megabytes(row["bytes"]),
            milliseconds(row["image"]["p50_ms"]),
            times(ratios[0] and ratios[0]["speedup"]),
            "–".join(f"{end:.2f}" for end in ratios[0]["ci95"]) if ratios[0] else "",
            milliseconds(row["text"]["p50_ms"]),
            times(ratios[1] and ratios[1]["speedup"]),
            percent(moved.get("r10_lost")),
            percent(moved.get("flip_rate")),
        )
    notes = [f"not measured: {what}: {reason}" for what, reason in document["missing"].items()]
    notes += [f"note: {text}" for text in document["environment"]["warnings"]]
    made, about = artifact_summary(artifact)
    said = document["recommendation"]["sentence"]
    return {**cast(dict[str, Any], made), "verdict": document}, Group(table, Text(said), *map(Text, notes), about)


def quantize_summary(artifact: Artifact, judged: Artifact | None) -> Summary:
    """A quantized checkpoint, and the verdict on it where one was asked for."""
    document, view = artifact_summary(artifact)
    if judged is None:
        return document, view
    verdict, found = verdict_summary(judged)
    return {**cast(dict[str, Any], document), "judged": verdict}, Group(view, found)


def report_summary(artifact: Artifact) -> tuple[dict[str, Any], RenderableType]:
    """The report's document, and its ledger with the place of the page."""
    document = read_json(artifact.file("report.json"), _AGAIN)
    return document, Group(report_view(document), Text(f"report: {artifact.file('report.html')}"))


def verdicts_summary(verdicts: Sequence[Mapping[str, Any]]) -> Summary:
    """Each gate with what was measured; failed ones first."""
    table = _table("", "gate", "row", ">measured", ">limit", ">95% interval", "note")
    for verdict in sorted(verdicts, key=lambda one: bool(one["passed"])):
        interval = verdict["interval"]
        table.add_row(
            "ok" if verdict["passed"] else "FAIL",
            verdict["gate"],
            verdict["row"],
            compact(verdict["value"]),
            compact(verdict["limit"]),
            "" if interval is None else f"{compact(interval[0])} to {compact(interval[1])}",
            verdict["note"],
        )
    return {"passed": all(one["passed"] for one in verdicts), "gates": list(verdicts)}, table


def manifest_view(artifact: Artifact) -> RenderableType:
    """A manifest in readable form."""
    manifest = artifact.manifest
    made = ", ".join(f"{name} {version}" for name, version in manifest.environment.items())
    about = _pairs(
        {
            "path": str(artifact.path),
            "kind": f"{manifest.kind.value}, made by {manifest.stage}",
            "digest": artifact.digest,
            **_model_lines(artifact),
            **{f"parent {role}": digest for role, digest in manifest.parents.items()},
            "config": text_from_json(manifest.config),
            **{key: _short(value) for key, value in {**manifest.facts, **manifest.metrics}.items()},
            "made with": made,
        }
    )
    files = _table("file", ">size", "SHA-256")
    for name, entry in manifest.files.items():
        files.add_row(name, count(entry.bytes), entry.sha256[:16])
    if not manifest.graphs:
        return Group(about, files)
    graphs = _table("graph", "tower", "precision", "activations", "for", "input", "output")
    for graph in manifest.graphs:
        sides = (", ".join(map(_spec, graph.inputs)), ", ".join(map(_spec, graph.outputs)))
        graphs.add_row(graph.file, graph.tower, graph.precision, graph.activations, graph.target or "any", *sides)
    return Group(about, files, graphs)


def _model_lines(artifact: Artifact) -> dict[str, str]:
    model = artifact.manifest.model
    if model is None:
        return {}
    lines = {
        "model": f"{count(model.params)} parameters, {millions(model.macs)} MACs an image, {model.embed_dim} dimensions"
    }
    for name, tower in (("image tower", model.image), ("text tower", model.text)):
        heads, mlp = " ".join(map(str, tower.heads)), " ".join(map(str, tower.mlp))
        lines[name] = f"{tower.depth} blocks of width {tower.width}; heads {heads}; MLP {mlp}; {tower.activation}"
    side, patch = model.image.image_size, model.image.patch
    lines["inputs"] = (
        f"{side}x{side} pixels in {patch}x{patch} patches; {model.text.context} of {count(model.text.vocab)} tokens"
    )
    return lines


def diagnosis_view(found: Mapping[str, Any]) -> RenderableType:
    """`doctor`'s facts as tables."""
    cpu, gpu = found["cpu"], found["gpu"]
    int8 = "unknown" if cpu["int8"] is None else ", ".join(cpu["int8"]) or "none that speeds up INT8"
    about = _pairs(
        {
            "mmcompress": f"{found['mmcompress']} on Python {found['python']}, {found['platform']}",
            "processor": f"{cpu['model']}, {cpu['cores']} cores; {int8}",
            "GPU": "; ".join(" ".join(one.values()) for one in gpu) or "none found: engines can be built but not run",
        }
    )
    backends = _table("backend", "", "why not")
    for backend in found["backends"]:
        backends.add_row(backend["name"], "runs" if backend["usable"] else "no", backend["reason"] or "")
    extras = _table("extra", "installed", "missing", "to install")
    for extra in found["extras"]:
        have = ", ".join(f"{name} {version}" for name, version in extra["installed"].items())
        lack = ", ".join(p["package"] + (f" (only where {p['only']})" if p["only"] else "") for p in extra["missing"])
        extras.add_row(extra["name"], have, lack, extra["command"] if lack else "")
    return Group(about, backends, extras)


def report_view(report: Mapping[str, Any]) -> RenderableType:
    """The ledger and the headline of a report."""
    table = _table("row", ">parameters", ">MACs", ">size", ">R@10", "95%", ">top-1", ">cosine", ">batch 1", "on")
    for row in report["rows"]:
        metrics, best = row["metrics"], row["fastest"]
        table.add_row(
            row["stage"],
            count(row["params"]),
            millions(row["macs"]),
            megabytes(row["bytes"]),
            percent(metrics["i2t_r10"]),
            percent_interval(metrics["ci95"].get("i2t_r10")),
            percent(metrics["top1"]),
            cosine(metrics["cosine_mean"]),
            milliseconds(best["p50_ms"] if best else None),
            f"{best['backend']} {best['precision']}" if best else "not measured",
        )
    verdicts = [f"{found['name']}: {found['recommendation']['sentence']}" for found in report["verdicts"]]
    return Group(table, *(Text(line) for line in [*report["headlines"], *verdicts]))


def comparison_summary(found: Mapping[str, Any]) -> Summary:
    """What `compare` found: one line a pair of measurements, and what to know about it; or one a range."""
    if "ranges" in found:
        return dict(found), _calibrations_view(found)
    table = _table("row", "on", ">batch", ">A", ">B", ">B is faster by", "95%", "", ">ceiling, A", ">B")
    for pair in found["comparisons"]:
        a, b = pair["a"], pair["b"]
        names = dict.fromkeys(f"{side['row']} {side['precision']}" for side in (a, b))
        table.add_row(
            " / ".join(names),
            " / ".join(dict.fromkeys((a["backend"], b["backend"]))),
            str(pair["batch"]),
            milliseconds(a["p50_ms"]),
            milliseconds(b["p50_ms"]),
            f"{pair['speedup']:.3f} times",
            f"{pair['ci95'][0]:.3f}–{pair['ci95'][1]:.3f}",
            "significant" if pair["significant"] else "not significant",
            percent(a.get("ceiling_share")),
            percent(b.get("ceiling_share")),
        )
    peaks = [
        f"ceiling: {c['backend']} {c['precision']}, {c['threads']} threads: {c['gmacs_per_s']:.0f} GMAC/s"
        for c in found["ceiling"]
    ]
    return dict(found), Group(table, *map(Text, peaks), *(Text(f"note: {note}") for note in found["notes"]))


def _calibrations_view(found: Mapping[str, Any]) -> RenderableType:
    """The ranges of two calibrations, those that differ most first."""
    table = _table("activation", ">A from", ">to", "by", ">B from", ">to", "by", ">B's step is")
    for row in found["ranges"]:
        cells = []
        for side, method in zip((row["a"], row["b"]), row["methods"], strict=True):
            cells += [f"{side['low']:.3g}", f"{side['high']:.3g}"] if side else [ABSENT, ABSENT]
            cells.append(method or "")
        table.add_row(row["module"], *cells, ABSENT if row["ratio"] is None else f"{row['ratio']:.3f} times")
    drifts = [
        f"drift of {letter}: "
        + ", ".join(f"{kind} {tower} {value:.3g}" for kind, towers in drift.items() for tower, value in towers.items())
        for letter, drift in zip("AB", found["drift"], strict=True)
        if drift
    ]
    return Group(table, *map(Text, drifts))


def bench_summary(artifact: Artifact) -> Summary:
    """Latencies of a bench, with what the machine did to them."""
    document, view = artifact_summary(artifact)
    found = read_json(artifact.file("bench.json"), _AGAIN)
    table = _table(
        "row", "on", ">batch", ">threads", ">streams", ">p50", ">p95", ">p99", ">cv", ">images/s", ">ceiling", ""
    )
    for row in found["rows"]:
        for entry in row["latency"]:
            table.add_row(
                row["row"],
                f"{entry['backend']} {entry['precision']}",
                *("" if entry[key] is None else str(entry[key]) for key in ("batch", "threads", "streams")),
                *(milliseconds(entry[key]) for key in ("p50_ms", "p95_ms", "p99_ms")),
                percent(entry["cv"]),
                f"{entry['throughput_ips']:,.0f}",
                percent(entry["ceiling_share"]),
                " ".join(word for word in ("noisy", "throttled") if entry[word]),
            )
    warnings = [Text(f"note: {text}") for text in found["environment"]["warnings"]]
    return document, Group(table, *warnings, view)


def shares_summary(shares: Sequence[tuple[str, float]]) -> Summary:
    """Labels with their probabilities."""
    lines = _aligned([(label, percent(share)) for label, share in shares])
    return [{"label": label, "share": share} for label, share in shares], lines


def matches_summary(matches: Sequence[tuple[Path, float]]) -> Summary:
    """Images with their cosine similarity to the text."""
    lines = _aligned([(str(path), f"{similarity:.3f}") for path, similarity in matches])
    return [{"image": str(path), "similarity": similarity} for path, similarity in matches], lines


def _aligned(rows: Sequence[tuple[str, str]]) -> Text:
    width = max((cell_len(name) for name, _ in rows), default=0)
    return Text("\n".join(f"{name}{' ' * (width - cell_len(name))}  {figure:>6}" for name, figure in rows))


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for column in columns:
        right = column.startswith(">")
        table.add_column(column.lstrip(">"), justify="right" if right else "left", no_wrap=right, overflow="fold")
    return table


def _pairs(values: Mapping[str, str]) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for key, value in values.items():
        table.add_row(key, Text(value))
    return table


def _spec(spec: TensorSpec) -> str:
    axes = ",".join("N" if axis is None else str(axis) for axis in spec.shape)
    return f"{spec.name} ({axes}) {spec.dtype}"


def _short(value: object, limit: int = 300) -> str:
    text = value if isinstance(value, str) else text_from_json(value)
    return text if len(text) <= limit else f"{text[:limit]}… ({count(len(text))} characters)"
