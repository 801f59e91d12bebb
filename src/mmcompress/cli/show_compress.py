"""What the commands that make a model print: sizes, what training brought, and what a whole recipe made."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Group
from rich.text import Text

from mmcompress.artifact import Artifact
from mmcompress.cli.console import Summary, about, artifact_summary, empty_table
from mmcompress.cli.show_measure import verdict_summary
from mmcompress.cli.show_report import report_summary
from mmcompress.compress.sizing.document import SIZING, SizingDocument
from mmcompress.formats import compact, count, milliseconds, percent, percent_interval
from mmcompress.int8 import FLOATS_FACT, TABLE, TABLE_FACT
from mmcompress.manifest import Kind
from mmcompress.metrics import FIGURES
from mmcompress.pipeline.pilot import PilotDocument
from mmcompress.seen import JUDGED_ON, SEEN, JudgedOn

JUDGES: Mapping[JudgedOn, str] = {
    "validation": "validation samples",
    "unfitted": "calibration samples that no weight was fitted to",
    "seen": "the samples that calibrated it, which says little of others,",
}
"""What the samples are that a quantized model's cost was measured on."""
LISTED = 5
"""Products in float that are named on the console."""


def prune_summary(artifact: Artifact) -> Summary:
    """What pruning left, and of a latency what was asked and what was measured."""
    document, place = artifact_summary(artifact)
    facts = artifact.manifest.facts
    lines = [f"left: {percent(facts['macs_share'])} of the MACs, {percent(facts['params_share'])} of the parameters"]
    for tower in artifact.manifest.metrics.get("towers", {}).values():
        if "channels_between_blocks" in tower:
            lines.append(f"channels between blocks: {tower['channels_between_blocks']:g}x")
        if "asked" in tower:
            asked, measured, backend = tower["asked"], tower["measured"], tower["backend"]
            lines.append(f"latency on {backend}: {measured:.3f}x measured, {asked:.3f}x asked")
    return document, Group(place, *map(Text, lines))


def sizing_summary(artifact: Artifact) -> Summary:
    """The student that was chosen, its runners-up and why."""
    document, place = artifact_summary(artifact)
    sizing = SizingDocument.read(artifact.file(SIZING))
    table = empty_table("student", ">MACs", ">parameters", ">composed", ">measured", "")
    for row in sizing.rows:
        times_ms = (milliseconds(row.predicted_ms), milliseconds(row.measured_ms))
        table.add_row(row.student, count(row.macs), count(row.params), *times_ms, "" if row.fits else "too slow")
    return document, Group(table, Text(sizing.why), place)


def finetune_summary(artifact: Artifact) -> Summary:
    """What each mix of the start and the fine-tuned weights finds, and which of them the result is."""
    document, place = artifact_summary(artifact)
    found = artifact.manifest.metrics["interpolation"]
    figures = {where: FIGURES[figure] for where, figure in found["figures"].items() if figure is not None}
    table = empty_table(">fine-tuned", *(f">{figure} on {where}" for where, figure in figures.items()), "")
    for point in found["points"]:
        shares = (percent(point[where]) for where in figures)
        table.add_row(percent(point["alpha"]), *shares, "taken" if point["alpha"] == found["alpha"] else "")
    if "original" in figures:
        return document, Group(table, place)
    return document, Group(table, Text("what it costs elsewhere is not measured: give --original DATA"), place)


def pilot_summary(pilot: PilotDocument) -> Summary:
    """The students of a pilot's teachers, and which teacher to take."""
    table = empty_table("teacher", ">R@10", "95%", ">change", "95%", ">images/s", "")
    for row in pilot.rows:
        table.add_row(
            row.teacher,
            percent(row.r10),
            percent_interval(row.r10_ci95),
            f"{100 * row.change:+.1f}",
            percent_interval(row.change_ci95),
            f"{row.embedded_ips:,.0f}",
            "take this one" if row.teacher == pilot.take else "" if row.significant else "no difference seen",
        )
    about_it = f"{pilot.pairs} pairs and {pilot.steps} steps each, judged on {pilot.judged} images"
    return pilot.model_dump(mode="json", by_alias=True), Group(table, Text(about_it))


def qat_summary(artifact: Artifact) -> Summary:
    """What training brought, by graph and tower."""
    document, place = artifact_summary(artifact)
    facts = artifact.manifest.facts["qat"]
    lost = percent(facts["r10_lost_before"])
    if not facts["trained"]:
        return document, Group(place, Text(f"not trained: INT8 loses {lost} of the R@10 hits"))
    table = empty_table("activations", "tower", ">drift before", ">trained", "", keys=2)
    for kind, towers in facts["parts"].items():
        for tower, taken in towers.items():
            figures = (compact(facts[when][kind][tower], 3) for when in ("drift_before", "drift_after"))
            table.add_row(kind, tower, *figures, "taken" if taken else "not closer, left as it was")
    return document, Group(table, place)


def quantize_summary(artifact: Artifact, judged: Artifact | None) -> Summary:
    """What became INT8, what that cost on the samples that judged, and the verdict on it where one was asked for."""
    document, place = artifact_summary(artifact)
    facts, cost = artifact.manifest.facts, artifact.manifest.metrics["calibration"]
    integers = facts["linears"] if "linears" in facts else facts["products"]
    kept = [name for name in facts["kept"] if name != TABLE]
    left = facts.get(FLOATS_FACT, [])
    products = integers + len(kept) + len(left)
    lines = [f"INT8: {integers} of {products} products with weights; the others stay in float"]
    lines += [f"not in INT8 here: {name}" for name in left[:LISTED]]
    lines += [f"and {len(left) - LISTED} more, which the manifest lists"] if len(left) > LISTED else []
    if TABLE_FACT in facts:
        lines.append("the text tower's table of tokens is in 8 bits, one scale a row")
    asked, seen = artifact.manifest.config["samples"], facts[SEEN]["pairs"]
    if seen < asked:
        lines.append(f"calibrated on {seen} samples, which are all there are; {asked} were asked for")
    if "flips" in cost:
        lost, flips = percent(cost["r10_lost"]), percent(cost["flips"])
        where = JUDGES[facts.get(JUDGED_ON, "seen")]  # of what an earlier version made nothing better is known
        lines.append(f"on {where} it loses {lost} of the R@10 hits and answers {flips} of the images otherwise")
    if artifact.manifest.kind is Kind.CHECKPOINT:
        lines.append(f"it holds the float weights too; the small files come from: mmcompress export {artifact.path}")
    said = Group(place, *map(Text, lines))
    if judged is None:
        return document, said
    verdict, view = verdict_summary(judged)
    return {**about(artifact), "judged": verdict}, Group(said, view)


def run_summary(artifacts: Mapping[str, Artifact]) -> Summary:
    """The artifacts of a recipe, and the report where it made one."""
    places = {
        name: {"path": str(a.path), "kind": a.manifest.kind.value, "digest": a.digest} for name, a in artifacts.items()
    }
    reports = [artifact for artifact in artifacts.values() if artifact.manifest.stage == "report"]
    if not reports:
        return {"artifacts": places, "report": None}, Group(*(artifact_summary(a)[1] for a in artifacts.values()))
    document, view = report_summary(reports[-1])
    return {"artifacts": places, "report": document}, view
