"""The report: one document from what was measured, and a page that holds it."""

from __future__ import annotations

import base64
import hashlib
import html
import itertools
import json
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from check_demo_report import failures
from report_run import ROWS, bench_document, drift_document, graph, make_run, measurement, onnx_artifact

from mmcompress import formats
from mmcompress.artifact import Artifact
from mmcompress.pipeline import standalone
from mmcompress.report import axes, latencies, pareto
from mmcompress.report.report import joined
from mmcompress.report.sentences import headlines, highlights, not_measured


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder = tmp_path_factory.mktemp("run")
    make_run(folder)
    return standalone.report([folder])


@pytest.fixture(scope="module")
def document(report: Artifact) -> dict[str, Any]:
    return dict(json.loads(report.file("report.json").read_text()))


@pytest.fixture(scope="module")
def page(report: Artifact) -> str:
    return report.file("report.html").read_text(encoding="utf-8")


def test_rows_come_in_the_order_of_the_recipe(document: dict[str, Any]) -> None:
    assert [row["row"] for row in document["rows"]] == ["teacher", "distilled", "pruned", "recovered", "int8"]


def test_rows_join_facts_accuracy_and_latency(document: dict[str, Any]) -> None:
    row = document["rows"][1]
    assert (row["params"], row["macs"]) == (6_012_417, 97_517_568)
    assert row["metrics"]["i2t_r10"] == 0.452
    assert row["metrics"]["ci95"]["i2t_r10"] == pytest.approx([0.429, 0.474])
    assert [(entry["backend"], entry["batch"]) for entry in row["latency"]] == [
        ("onnxruntime", 1),
        ("onnxruntime", 8),
        ("openvino", 1),
        ("openvino", 8),
    ]
    assert row["fastest"]["backend"] == "openvino" and row["fastest"]["p50_ms"] == 1.33


def test_bytes_are_those_of_the_files_that_were_run(document: dict[str, Any]) -> None:
    sizes = {row["row"]: row["bytes"] for row in document["rows"]}
    assert sizes["recovered"] == 6_100 + 13_700, "fp16 files are not what the row's figures belong to"
    assert sizes["int8"] == 1_720 + 4_300, "the signed files are twice as large here"


def test_bytes_count_external_weights(tmp_path: Path) -> None:
    artifact = onnx_artifact(tmp_path / "big", ROWS["teacher"], [graph("image", "fp32"), graph("text", "fp32")])
    bare = joined("t", [artifact], tmp_path).rows[0].bytes
    with Artifact.create(tmp_path / "big", kind=artifact.manifest.kind, stage="export", key="x") as draft:
        for name in ("image-fp32.onnx", "text-fp32.onnx", "image-fp32.onnx_data"):
            (draft.path / name).write_bytes(bytes(1000))
        draft.graphs += artifact.manifest.graphs
    assert bare == 57_400
    assert joined("t", [Artifact.open(tmp_path / "big")], tmp_path).rows[0].bytes == 3000


def test_steps_are_ratios_of_neighbouring_rows(document: dict[str, Any]) -> None:
    step = document["steps"][0]
    assert (step["from"], step["to"]) == ("teacher", "distilled")
    assert step["r10_change"] == pytest.approx(0.452 - 0.478)
    assert step["macs_ratio"] == pytest.approx(402_653_184 / 97_517_568)
    assert step["latency_ratio"] == pytest.approx(4.02 / 1.33)


def test_headline_is_the_interleaved_ratio_against_the_teacher(document: dict[str, Any]) -> None:
    assert document["headlines"] == [
        "INT8 on OpenVINO is 8.29 times as fast as the teacher in FP32 on ONNX Runtime "
        "(batch 1, 95% interval 8.07 to 8.48).",
        "INT8 keeps 92.1% of teacher's R@10, at 14% of its image MACs and 10% of its bytes.",
    ]


def test_engines_carry_their_audit(document: dict[str, Any]) -> None:
    engine = document["engines"][1]
    assert (engine["name"], engine["version"], len(engine["files"])) == ("engine-int8", "1.7.1.116", 6)
    assert engine["files"][0]["target"] == "sm86"
    assert engine["files"][0]["audit"]["modules"] == {"fp32": 1, "int8": 23}


def test_what_was_not_measured_is_said(document: dict[str, Any]) -> None:
    said = " ".join(document["not_measured"])
    assert "Energy" in said and "no NVIDIA GPU ran them" in said and "sm120" in said
    assert "Accuracy" not in said.replace("Latency and accuracy", "")


def test_warnings_say_what_disturbed_the_latencies(tmp_path: Path) -> None:
    rows, bench = make_run(tmp_path)[:5], bench_document()
    bench["environment"]["warnings"] = []
    bench["rows"][0]["latency"][0]["throttled"] = True
    noisy = measurement(tmp_path / "noisy", "bench", bench, rows)
    assert joined("t", [*rows, noisy], tmp_path).warnings == (
        "The machine was noisy while latency was measured: the median of a fixed loop moved by 8%.",
        "The clock fell for heat during 1 of 20 latencies (throttled).",
    )
    assert joined("t", make_run(tmp_path), tmp_path).warnings == ("Another process used 34% of a core.",)


def test_phases_of_a_call_on_a_gpu_have_a_table(tmp_path: Path, page: str) -> None:
    bench = bench_document()
    phases = {"enqueue_ms": 0.0711, "copy_in_ms": 0.0522, "gpu_ms": 0.333, "copy_out_ms": 0.0044}
    bench["rows"][0]["latency"][0]["phases"] = phases
    row = onnx_artifact(tmp_path / "teacher", ROWS["teacher"], [graph("image", "fp32"), graph("text", "fp32")])
    measurement(tmp_path / "bench", "bench", {**bench, "rows": bench["rows"][:1]}, [row])
    told = standalone.report([tmp_path]).file("report.html").read_text(encoding="utf-8")
    (table,) = re.findall(r"<table[^>]*>(?:(?!</table>).)*copy out.*?</table>", told, re.DOTALL)
    cells = re.findall(r"<td>([^<]*)</td>", table)
    assert cells == ["1", "71", "52", "333", "4", "4,310"], "microseconds"
    assert "copy out" not in page, "CPUs have none"


def test_without_measurements_every_figure_is_null(tmp_path: Path) -> None:
    artifacts = make_run(tmp_path)[:7]
    found = joined("bare", artifacts, tmp_path)
    row = found.rows[0]
    metrics = row.metrics.model_dump()
    assert metrics.pop("ci95") == {}
    assert all(value is None for value in metrics.values())
    assert row.latency == () and row.fastest is None
    assert row.params == 14_212_097, "what is known without measuring stays"
    assert found.headlines == ()
    assert any("no drift measurement" in line for line in not_measured(found))


def test_a_report_of_nothing_measured_still_renders(tmp_path: Path) -> None:
    make_run(tmp_path)
    made = standalone.report([tmp_path / name for name in ("teacher", "int8")], tmp_path / "only")
    text = made.file("report.html").read_text(encoding="utf-8")
    assert '<svg class="chart' not in text and formats.ABSENT in text


def test_a_report_of_engines_alone_renders(tmp_path: Path) -> None:
    make_run(tmp_path)
    made = standalone.report([tmp_path / "engine-int8"], tmp_path / "only")
    assert "engine-int8" in made.file("report.html").read_text(encoding="utf-8")
    assert "README.md" not in made.manifest.files, "a card is of a row"


def test_a_second_test_set_has_its_own_table(tmp_path: Path) -> None:
    artifacts = make_run(tmp_path)
    other = measurement(tmp_path / "drift-zh", "drift", {**drift_document(), "test": "demo:zh"}, artifacts[:5])
    found = joined("two", [*artifacts, other], tmp_path)
    assert found.test.data == "demo:test"
    assert [(other.name, other.data, len(other.rows)) for other in found.other_tests] == [("drift-zh", "demo:zh", 5)]


def test_json_has_no_nan(report: Artifact) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    json.loads(report.file("report.json").read_text(), parse_constant=refuse)


class _Page(HTMLParser):
    """Collects what a page refers to, and checks that its elements nest."""

    void = frozenset({"meta", "br", "link", "img", "hr"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "data")]
        if tag not in self.void:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> at {self.getpos()}"


def test_page_is_one_self_contained_file(page: str) -> None:
    parsed = _Page()
    parsed.feed(page)
    assert parsed.open == []
    assert all(link.startswith(("#", "data:")) for link in parsed.links)
    assert "url(" not in page and "@import" not in page
    assert "prefers-color-scheme: dark" in page and "@media print" in page


def test_page_without_its_gallery_is_under_two_megabytes(page: str) -> None:
    assert len(re.sub(r"data:image/webp;base64,[^\"]*", "", page).encode()) < 2_000_000


def test_labels_and_captions_are_escaped(page: str, report: Artifact) -> None:
    """`<script>` stands in a class label, in the truth and in the answers of the gallery."""
    assert page.count("&lt;script&gt;alert(1)") >= 4
    assert "<script>alert" not in page
    assert page.count("<script") == 1, "the theme switch"


def test_policy_names_the_hash_of_the_only_script(page: str) -> None:
    """Content Security Policy level 3: base64 of the SHA-256 of the element's text."""
    for tag in ("script", "style"):
        (text,) = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in html.unescape(page)
    assert "default-src 'none'" in html.unescape(page)


def test_headings_are_in_order_and_tables_are_told(page: str) -> None:
    parsed = _Page()
    parsed.feed(page)
    levels = [int(tag[1]) for tag in parsed.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    assert parsed.tags.count("table") == parsed.tags.count("caption")
    assert re.search(r"<th(?! scope)[ >]", page) is None
    for image in re.findall(r"<svg[^>]*>", page):
        assert 'aria-hidden="true"' in image or re.search(r'role="img" aria-label="[^"]+"', image)


def test_gallery_says_who_was_right(page: str) -> None:
    shown = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page[page.index('id="gallery"') :]))
    assert "teacher was right (3)" in shown and "int8 is right (2)" in shown and "Neither is right (2)" in shown
    assert page.count("data:image/webp;base64,") == 7 + 3 * 2
    assert page.count('class="map"') == 6 and "Where teacher looks for: " in page


def test_json_holds_no_image(document: dict[str, Any]) -> None:
    assert len(document["gallery"]) == 7 and all("image" not in entry for entry in document["gallery"])


def test_page_shows_the_figures(page: str) -> None:
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page))
    for figure in ("14,212,097", "47.8%", "45.5–50.0", "402.7 M", "0.52 ms", "8.29×", "not INT8: image.blocks.5.out"):
        assert figure in text, figure
    assert "Classes that no training pair showed: 93 images" in text


def test_page_escapes_names(tmp_path: Path) -> None:
    artifacts = make_run(tmp_path)[:5]
    hostile = {**drift_document(), "test": "<script>alert(1)</script>"}
    drift = measurement(tmp_path / "drift-x", "drift", hostile, artifacts)
    made = standalone.report([a.path for a in (*artifacts, drift)], tmp_path / "out", {"title": "<b>t</b>"})
    text = made.file("report.html").read_text(encoding="utf-8")
    assert "<script>alert" not in text and "&lt;b&gt;t&lt;/b&gt;" in text


def test_charts_are_well_formed_and_inside_their_frame(page: str) -> None:
    charts = re.findall(r'<svg class="chart.*?</svg>', page, flags=re.DOTALL)
    plots = ("plot", "changes", "latency at 1", "at 8", "classes", "sensitivity", "noise", "carried noise")
    assert len(charts) == len(plots) + 5 + 4, "five panels of latencies and four of cosines"
    for chart in charts:
        root = ElementTree.fromstring(chart)
        _, _, width, height = map(float, root.attrib["viewBox"].split())
        for element in root.iter("text"):
            assert -1 <= float(element.attrib.get("x", 0)) <= width
            assert -1 <= float(element.attrib.get("y", 0)) <= height


def test_labels_of_a_crowded_plot_do_not_overlap(document: dict[str, Any]) -> None:
    points = [(300.0 + 6 * i, 200.0 + 3 * (i % 3)) for i in range(6)]
    names = ["teacher", "distilled", "pruned", "recovered", "int8", "int8"]
    boxes = pareto.place_labels(points, names, (60, 10, 740, 380))
    for i, a in enumerate(boxes):
        for b in boxes[i + 1 :]:
            assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]
        assert a[0] >= 60 and a[2] <= 740 and a[1] >= 10 and a[3] <= 380


def test_pareto_front_drops_what_is_slower_and_worse() -> None:
    def point(latency_ms: float, accuracy: float) -> pareto.Point:
        return pareto.Point("p", "openvino", latency_ms, accuracy, None)

    fast, dominated, accurate = point(1, 0.4), point(2, 0.35), point(3, 0.5)
    assert pareto.pareto_front([accurate, dominated, fast]) == [fast, accurate]


@pytest.mark.parametrize(("low", "high"), [(0.0, 0.5), (0.131, 0.502), (0.0, 97.0), (3.0, 3.0)])
def test_linear_ticks_cover_the_range(low: float, high: float) -> None:
    ticks = axes.linear_ticks(low, high)
    assert ticks[0] <= low and ticks[-1] >= high and len(ticks) <= 9


@pytest.mark.parametrize(("low", "high"), [(0.4, 6.0), (0.9, 1.4), (3, 900), (17, 62)])
def test_log_ticks_are_readable(low: float, high: float) -> None:
    assert 4 <= len(axes.log_ticks(low, high)) <= 12
    assert all(low <= tick <= high for tick in axes.log_ticks(low, high))


def test_a_stalled_run_does_not_squeeze_the_bars(tmp_path: Path) -> None:
    bench = bench_document()
    bench["rows"][0]["latency"][0]["p99_ms"] = 4000.0
    artifacts = make_run(tmp_path)[:5]
    report = joined("t", [*artifacts, measurement(tmp_path / "stalled", "bench", bench, artifacts)], tmp_path)
    chart = latencies.latency_bars(report.rows, 1, report.machines[0].id)
    assert "p99 4,000 ms" in chart and ">10</text>" in chart and "1000" not in chart


def test_markdown_tables_are_regular(report: Artifact) -> None:
    lines = report.file("report.md").read_text(encoding="utf-8").splitlines()
    tables = [list(block) for block in _blocks(lines)]
    assert [len(table) for table in tables] == [7, 6]
    for table in tables:
        assert len({line.count("|") for line in table}) == 1
    assert "| int8 | 4,930,113 | 55.1 M |" in "\n".join(lines)


def _blocks(lines: list[str]) -> list[list[str]]:
    blocks: list[list[str]] = [[]]
    for line in lines:
        if line.startswith("|"):
            blocks[-1].append(line)
        elif blocks[-1]:
            blocks.append([])
    return [block for block in blocks if block]


@pytest.mark.parametrize(
    ("function", "value", "text"),
    [
        (formats.percent, 0.4234, "42.3%"),
        (formats.percent, None, "–"),
        (formats.points, -0.012, "−1.2"),
        (formats.points, 0.0004, "0.0"),
        (formats.points, 0.25, "+25.0"),
        (formats.count, 6612481, "6,612,481"),
        (formats.count, 0, "0"),
        (formats.millions, 123456789, "123.5 M"),
        (formats.millions, 4_366_000_000, "4,366 M"),
        (formats.megabytes, 25_312_000, "25.3 MB"),
        (formats.milliseconds, 0.5234, "0.52 ms"),
        (formats.milliseconds, 1234.5, "1,234 ms"),
        (formats.times, 2.713, "2.71×"),
        (formats.times, 1.0, "same"),
        (formats.compact, 0.0123456, "0.01235"),
        (formats.p_value, 0.00001, "< 0.001"),
        (formats.decibels, -3.04, "−3.0 dB"),
        (formats.millijoules, None, "–"),
        (formats.fact, 25_276_510_208, "25,276,510,208"),
        (formats.fact, 10.037109375, "10.04"),
        (formats.fact, [2450, True], "2,450, yes"),
        (formats.cell, "a|b <c>\nd", "a\\|b &lt;c> d"),
    ],
)
def test_formats(function: Callable[[Any], str], value: float | None, text: str) -> None:
    assert function(value) == text


def test_demo_check_passes_on_good_figures_and_names_bad_ones(
    document: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert failures(document) == []
    worse = json.loads(json.dumps(document))
    worse["rows"][1]["metrics"]["i2t_r10"] = 0.40
    worse["rows"][4]["int8_against_fp32"] = None
    failed = failures(worse)
    assert [line.split(" (")[0] for line in failed] == [
        "distilled: share of the teacher's R@10: 0.8368",
        "int8: R@10 lost to its own FP32: not measured",
        "int8: mean cosine to its own FP32: not measured",
        "int8: top-1 answers that flip: not measured",
    ]
    assert failures({**document, "rows": document["rows"][::-1]})[0].startswith("rows are ['int8'")


def test_no_share_is_kept_of_what_is_at_chance(tmp_path: Path) -> None:
    document = joined("run", make_run(tmp_path), tmp_path / "report")
    assert any("keeps" in line for line in document.headlines)
    collapsed = {"collapsed": "its retrieval is no better than chance"}
    document = document.model_copy(update={"rows": tuple(row.model_copy(update=collapsed) for row in document.rows)})
    said = headlines(document)
    assert not any("keeps" in line for line in said)
    assert "int8: its retrieval is no better than chance, so its accuracy says nothing." in said
    assert "of R@10 kept" not in [figure.name for figure in highlights(document)]
