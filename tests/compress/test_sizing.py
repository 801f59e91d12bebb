"""Students sized by a latency: work adds up, costs are found again, and the choice is the best that fits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clip_world import write_squares, write_teacher

from mmcompress.architecture import AnyImageConfig
from mmcompress.artifact import Artifact
from mmcompress.compress.sizing import costs as costing
from mmcompress.compress.sizing import size as sizing
from mmcompress.compress.sizing.candidates import Candidate, candidates, probes_of, sides_of, tower_of
from mmcompress.compress.sizing.costs import EMBED_DIM, family_costs, nonnegative, predicted_ms
from mmcompress.compress.sizing.document import COSTS, SIZING, CostsDocument, SizingDocument
from mmcompress.compress.sizing.size import capacity_of, check_size, sized
from mmcompress.compress.sizing.work import family_of, work_of
from mmcompress.compress.train.student import check_preset
from mmcompress.config import SizeConfig, StudentConfig
from mmcompress.convnet import ConvConfig
from mmcompress.errors import UsageError
from mmcompress.measure.bench import blockcosts
from mmcompress.pipeline.standalone import sizing as sizings
from mmcompress.pipeline.standalone.sizing import milliseconds
from mmcompress.runtime.machine import machine

NS = {
    "full": 0.01,
    "pointwise": 0.02,
    "depthwise": 0.2,
    "linear": 0.01,
    "attention": 0.05,
    "written": 0.3,
    "calls": 4e3,
}


def true_ms(tower: AnyImageConfig, slower: float = 1.0) -> float:
    """What a tower takes on a machine whose costs are `NS`."""
    return slower * 1e-6 * sum(NS.get(kind, 0.0) * amount for kind, amount in work_of(tower, EMBED_DIM).items())


def table(image_size: int = 224) -> CostsDocument:
    probes = probes_of(image_size)
    towers = [tower_of(probe) for probe in probes]
    families = {}
    for family in ("transformer", "convolutional"):
        own = [i for i, tower in enumerate(towers) if family_of(tower) == family]
        chosen = ([probes[i] for i in own], [towers[i] for i in own], [true_ms(towers[i]) for i in own])
        families[family] = family_costs(*chosen)
    return CostsDocument.model_validate(
        {
            "backend": "openvino",
            "precision": "int8",
            "threads": 2,
            "image_size": image_size,
            "environment": machine(),
            "families": families,
        }
    )


@pytest.mark.parametrize("preset", ["mnv4-s", "mnv4-m", "mnv4-l", "mnv4-hm", "vit-s16", "vit-b32"])
def test_work_is_all_of_the_tower(preset: str) -> None:
    tower = tower_of(Candidate(preset, 224))
    work = work_of(tower, EMBED_DIM)
    products = sum(work.get(kind, 0) for kind in ("full", "pointwise", "depthwise", "linear", "attention"))
    projection = tower.head * EMBED_DIM if isinstance(tower, ConvConfig) else 0
    assert products + projection == tower.macs(EMBED_DIM)


@pytest.mark.parametrize("image_size", [64, 224])
def test_costs_that_add_up_are_found_again(image_size: int) -> None:
    costs = table(image_size)
    for family in costs.families.values():
        assert all(abs(row.predicted_ms / row.measured_ms - 1) < 0.1 for row in family.towers)
    for one in candidates(image_size):
        assert predicted_ms(costs, tower_of(one)) == pytest.approx(true_ms(tower_of(one)), rel=0.1)


def test_least_squares_without_negative_costs() -> None:
    rng = np.random.default_rng(0)
    amounts = rng.random((30, 4))
    found = nonnegative(amounts, amounts @ np.array([1.0, 0.0, 2.0, 0.5]))
    np.testing.assert_allclose(found, [1.0, 0.0, 2.0, 0.5], atol=1e-6)
    bound = nonnegative(amounts, amounts @ np.array([1.0, -1.0, 2.0, 0.5]))
    assert bound.min() == 0 == bound[1]


@pytest.mark.parametrize(
    ("preset", "width", "depth"), [("vit-s16", 0.5, 0.5), ("mnv4-m", 0.75, 0.5), ("mnv4-hm", 1.25, 1)]
)
def test_a_scaled_preset_has_the_shares_that_were_asked_for(preset: str, width: float, depth: float) -> None:
    whole, scaled = (tower_of(Candidate(preset, 224, *shares)) for shares in ((1.0, 1.0), (width, depth)))
    assert scaled.output_stride == whole.output_stride and scaled.image_size == whole.image_size
    assert scaled.depth <= whole.depth
    assert scaled.macs(EMBED_DIM) / whole.macs(EMBED_DIM) == pytest.approx(width**2 * (0.4 + 0.6 * depth), rel=0.45)
    if isinstance(scaled, ConvConfig):
        channels = [scaled.stem, scaled.head, *(getattr(block, "hidden", 8) for block in scaled.blocks)]
        assert all(channel % 8 == 0 for channel in channels)


@pytest.mark.parametrize(
    ("source", "shares", "said", "least"),
    [
        ("mnv4-s", {"width": 0.001}, "student.width 0.001: of 32 channels, in multiples of 8, nothing is left", 0.13),
        ("mnv4-hm", {"width": 0.125}, "of 32 channels", 0.13),
        ("vit-t16", {"width": 0.05}, "student.width 0.05: of 6 heads nothing is left", 0.09),
        ("vit-s16", {"depth": 0.01}, "student.depth 0.01: of 12 blocks nothing is left", 0.05),
    ],
)
def test_a_share_of_a_preset_that_rounds_to_nothing_is_refused(
    source: str, shares: dict[str, float], said: str, least: float
) -> None:
    with pytest.raises(UsageError) as caught:
        check_preset(StudentConfig.model_validate({"source": source, **shares}))
    assert said in str(caught.value) and caught.value.hint == f"give {least:g} or more"
    check_preset(StudentConfig.model_validate({"source": source, **dict.fromkeys(shares, least)}))


@pytest.mark.parametrize("image_size", [64, 224])
def test_every_student_that_is_weighed_is_one_that_distill_takes(image_size: int) -> None:
    for candidate in candidates(image_size):
        check_preset(candidate.student)


def test_sides_are_what_patches_divide() -> None:
    assert sides_of(224) == (224, 192, 160, 128) and sides_of(64) == (64, 48, 32) and sides_of(16) == (16,)
    assert {one.image_size for one in candidates(224, (160,))} == {160}
    assert not [one for one in candidates(224, (100,)) if one.preset.startswith("vit")]


@pytest.mark.parametrize("slower", [0.8, 1.0, 1.3])
def test_the_choice_fits_by_measurement_and_nothing_that_fits_has_more_capacity(
    slower: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a machine that takes another time for whole graphs than the sum of their work."""

    def timed(towers: Sequence[AnyImageConfig], *_: object) -> list[float]:
        return [true_ms(tower, slower) for tower in towers]

    monkeypatch.setattr(sizing, "timed", timed)
    document, chosen = sized(table(), SizeConfig(target_ms=6.0), here=True)
    best = document.rows[0]
    assert best.student == chosen.name and best.fits
    assert 0.85 * 6 < true_ms(tower_of(chosen), slower) <= 6
    fitting = [tower_of(one) for one in candidates(224) if true_ms(tower_of(one), 1.02 * slower) <= 6]
    assert capacity_of(tower_of(chosen)) >= 0.9 * max(map(capacity_of, fitting))
    assert {row.family for row in document.rows} == {"transformer", "convolutional"}
    assert all(row.measured_ms is not None for row in document.rows)


def test_a_noise_does_not_turn_down_what_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every second run has another program beside it, which takes half of the machine."""
    runs: list[int] = []

    def timed(towers: Sequence[AnyImageConfig], *_: object) -> list[float]:
        runs.append(len(towers))
        return [true_ms(tower, 2.0 if len(runs) % 2 else 1.0) for tower in towers]

    monkeypatch.setattr(sizing, "timed", timed)
    _, chosen = sized(table(), SizeConfig(target_ms=6.0), here=True)
    assert 0.85 * 6 < true_ms(tower_of(chosen)) <= 6


def test_costs_of_another_machine_decide_by_themselves_and_say_so() -> None:
    document, chosen = sized(table(), SizeConfig(target_ms=6.0), here=False)
    assert "nothing was timed here" in document.why
    assert all(row.measured_ms is None and row.fits for row in document.rows)
    assert document.rows[0].student == chosen.name and document.rows[0].predicted_ms <= 6


def test_costs_of_other_cores_are_another_machines() -> None:
    costs = table()
    assert sizing.is_here(costs)
    for changed in ({"cores": costs.environment.cores + 1}, {"cpu": "another"}):
        there = costs.environment.model_copy(update=changed)
        assert not sizing.is_here(costs.model_copy(update={"environment": there}))


def test_a_latency_that_nothing_fits_into_says_the_least() -> None:
    with pytest.raises(UsageError, match=r"no student takes 0\.001 ms or less: the fastest, .* takes about"):
        sized(table(), SizeConfig(target_ms=0.001), here=False)


def test_a_table_of_another_runtime_is_refused(tmp_path: Path) -> None:
    from mmcompress.manifest import Kind

    with Artifact.create(tmp_path / "t", kind=Kind.REPORT, stage="block-costs", key="k") as draft:
        table().write(draft.path / COSTS)
    costs = Artifact.open(tmp_path / "t")
    with pytest.raises(UsageError, match="is of backend openvino, and onnxruntime was asked for") as caught:
        check_size(SizeConfig(target_ms=3, backend="onnxruntime"), {"costs": costs})
    assert "mmcompress block-costs --backend onnxruntime" in caught.value.hint
    with pytest.raises(UsageError, match="is of precision int8, and fp32 was asked for") as caught:
        check_size(SizeConfig(target_ms=3, precision="fp32"), {"costs": costs})
    assert "mmcompress block-costs --precision fp32" in caught.value.hint
    with pytest.raises(UsageError, match=r"no student takes 0\.001 ms"):
        check_size(SizeConfig(target_ms=0.001), {"costs": costs})


def test_a_table_of_large_images_sizes_no_student_for_small_ones(tmp_path: Path) -> None:
    from mmcompress.manifest import Kind

    with Artifact.create(tmp_path / "t", kind=Kind.REPORT, stage="block-costs", key="k") as draft:
        table(224).write(draft.path / COSTS)
    costs = Artifact.open(tmp_path / "t")
    check_size(SizeConfig(target_ms=6, image_size=160), {"costs": costs})
    with pytest.raises(UsageError, match="images of up to 224 pixels, and the student's have up to 64") as caught:
        check_size(SizeConfig(target_ms=6, image_size=64), {"costs": costs})
    assert "bench --blocks --image-size 64" in caught.value.hint


def test_sides_above_the_largest_are_refused() -> None:
    with pytest.raises(ValueError, match=r"image_sizes = \[224\] are larger than image_size = 64"):
        SizeConfig(target_ms=6, image_size=64, image_sizes=(224,))


def test_a_table_that_lacks_work_is_refused() -> None:
    with pytest.raises(UsageError, match=r"lacks a kind of work that mnv4-hm at 224 px") as caught:
        sized(table(64), SizeConfig(target_ms=6.0, image_size=224), here=False)  # without attention, it cost nothing
    assert "--image-size 224" in caught.value.hint
    half = table()
    half = half.model_copy(update={"families": {"transformer": half.families["transformer"]}})
    with pytest.raises(UsageError, match="lacks a kind of work that mnv4-s at"):
        sized(half, SizeConfig(target_ms=6.0), here=False)


@pytest.mark.parametrize(("said", "ms"), [("3ms", 3.0), ("800us", 0.8), (" 0.01s ", 10.0)])
def test_times_of_one_image(said: str, ms: float) -> None:
    assert milliseconds(said) == pytest.approx(ms)


@pytest.mark.parametrize("said", ["3", "ms", "-1ms", "0ms", "3 min", "nanms", "infs", "3mms"])
def test_what_is_no_time_is_refused(said: str) -> None:
    with pytest.raises(UsageError, match="is no time of one image"):
        milliseconds(said)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sizing")
    write_squares(folder)
    write_teacher(folder / "teacher")
    return folder


def test_a_student_is_sized_measured_and_distilled(
    world: Path, cli: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MMCOMPRESS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(blockcosts, "ROUND_S", 0.02)
    monkeypatch.setattr(costing, "probes_of", lambda side: probes_of(side)[:4] + probes_of(side)[-6:-3])
    data = str(next(world.glob("squares-*.tar")))
    timed = cli("bench", "--blocks", "--image-size", "64", "--backend", "onnxruntime", "--out", tmp_path / "table")
    assert timed.code == 0 and "convolutional" in timed.out
    student = tmp_path / "student"
    asked = ("distill", "--teacher", world / "teacher", "--data", data, "--set", "optimizer.steps=1")
    sized_by = ("--student-image-size", "32", "--target-latency", "50ms", "--latency-table", tmp_path / "table")
    ended = cli(*asked, *sized_by, "--set", "optimizer.batch=20", "--out", student)
    assert ended.code == 0, ended.err
    document = SizingDocument.read(tmp_path / "student-sizing" / SIZING)
    made = Artifact.open(student)
    assert document.rows[0].macs == tower_macs(made)
    assert made.manifest.config["student"]["source"] == document.rows[0].student.split()[0]


def tower_macs(made: Artifact) -> int:
    stated = made.manifest.config["student"]
    student = StudentConfig.model_validate({key: stated[key] for key in ("source", "image_size", "width", "depth")})
    return tower_of(Candidate(student.source, student.image_size or 0, student.width, student.depth)).macs(EMBED_DIM)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--student", "auto"), "--student auto is sized by a latency, and none is given"),
        (("--student", "vit-s16", "--backend", "openvino"), "are of a student that is sized by a latency"),
        (
            ("--student", "vit-s16", "--target-latency", "3ms"),
            "--target-latency chooses the student, and vit-s16 is one",
        ),
        (("--target-latency", "3"), "is no time of one image"),
        (("--target-latency", "3ms", "--set", "student.width=0.5"), "--target-latency chooses width"),
        (("--target-latency", "3ms", "--parts", "2"), "--target-latency may choose a convolutional student"),
        (("--target-latency", "3ms", "--set", "steps=2"), "unknown key 'steps'"),
        (("--target-latency", "3ms", "--optimizer-batch", "20", "--embed-views", "0"), "views"),
        (("--target-latency", "3ms", "--optimizer-batch", "9999"), "a batch of 9999 pairs was asked for"),
        (("--target-latency", "3ms", "--student-tokenizer", "x"), "student.tokenizer is for teachers that bring none"),
        (("--target-latency", "3ms", "--student-image-size", "0"), "image_size 0 is no side of an image"),
        (("--target-latency", "3ms", "--validation", "v.tar"), "--validation is what --watch-steps measures on"),
        (("--target-latency", "3ms", "--data", "nowhere.tar"), "nowhere.tar"),
    ],
)
def test_a_budget_that_makes_no_sense_is_refused_before_anything_is_timed(
    words: tuple[str, ...],
    said: str,
    world: Path,
    cli: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def nothing(*_: Any) -> None:
        raise AssertionError("towers were timed")

    monkeypatch.setattr(sizings, "size", nothing)
    data = str(next(world.glob("squares-*.tar")))
    ended = cli("distill", "--teacher", world / "teacher", "--data", data, *words, "--out", tmp_path / "out")
    assert ended.code == 2 and said in " ".join(ended.err.split())
    assert not [*tmp_path.iterdir()]


def test_what_cached_embeddings_do_not_go_with_is_refused_before_anything_is_timed(
    world: Path, cli: Callable[..., Any], tmp_path: Path
) -> None:
    data, cached = str(next(world.glob("squares-*.tar"))), tmp_path / "cached"
    assert cli("embed", "--teacher", world / "teacher", "--data", data, "--out", cached).code == 0
    asked = ("distill", "--embeddings", cached, "--target-latency", "3ms", "--out", tmp_path / "out")
    for words, said in ((("--set", "steps=2"), "unknown key 'steps'"), (("--embed-views", "2"), "nothing to do here")):
        ended = cli(*asked, *words)
        assert ended.code == 2 and said in " ".join(ended.err.split())
    assert [*tmp_path.iterdir()] == [cached]


def test_what_is_timed_is_the_first_runtime_that_works(
    world: Path, cli: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MMCOMPRESS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sizings, "default_backend", lambda: "onnxruntime")
    timed: list[object] = []

    def costs(backend: object, *_: object) -> CostsDocument:
        timed.append(backend)
        raise UsageError("enough", "stop")

    monkeypatch.setattr(costing, "measured_costs", costs)
    data = str(next(world.glob("squares-*.tar")))
    asked = ("distill", "--teacher", world / "teacher", "--data", data, "--optimizer-batch", "20")
    assert "enough" in cli(*asked, "--target-latency", "3ms", "--out", tmp_path / "out").err
    assert "enough" in cli("bench", "--blocks", "--out", tmp_path / "table").err
    assert timed == ["onnxruntime"] * 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "bench measures artifacts, and none is named"),
        (("vit-b32", "--blocks"), "--blocks times towers of its own, and vit-b32 was named"),
        (("--blocks", "--seconds", "3"), "seconds is of artifacts"),
        (("--blocks", "--backend", "openvino", "--backend", "onnxruntime"), "a table is of one runtime"),
        (("vit-b32", "--image-size", "64"), "--image-size is of --blocks"),
        (("--blocks", "--image-size", "0"), "mmcompress bench --blocks: image_size is 0: Input should be greater"),
        (("--blocks", "--threads", "0"), "mmcompress bench --blocks: threads is 0: Input should be greater"),
    ],
)
def test_what_a_table_is_not_of_is_refused(
    words: tuple[str, ...], said: str, cli: Callable[..., Any], tmp_path: Path
) -> None:
    ended = cli("bench", *words, "--out", tmp_path / "out")
    assert ended.code == 2 and said in " ".join(ended.err.split())
