"""The qat stage on a small world: what it trains, what it leaves alone, when it does nothing, and what it refuses."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bad_fit import badly_fitted
from clip_world import write_squares, write_teacher
from safetensors.numpy import load_file, save_file
from shards import picture, write_tar

from mmcompress.artifact import Artifact
from mmcompress.budget import Budget, Cost
from mmcompress.compress.int8 import fakequant
from mmcompress.compress.int8 import qat as stage
from mmcompress.compress.int8.acceptance import Fit, FitCost, closer, gained, needed
from mmcompress.data.batches import read
from mmcompress.data.sample import image_of
from mmcompress.errors import CorruptInputError, MissingRequirementError, UsageError
from mmcompress.export.pixels import image_processing
from mmcompress.export.texts import save_text_processing
from mmcompress.huggingface import dual_encoder_from_hugging_face, save_checkpoint
from mmcompress.int8 import INTEGERS, IntegerLinear, linears_from_tensors
from mmcompress.manifest import Kind
from mmcompress.pipeline import standalone
from mmcompress.pipeline.recipe import parse_assignments
from mmcompress.seen import SEEN_IMAGES, seen_images

pytestmark = pytest.mark.usefixtures("better_than_chance")

KEPT = "text.blocks.1.fc2"
PLAIN = ("method=minmax", "smooth=[]", "rounding=nearest", "bias_correction=false", "max_drop=null")
FEW = ("optimizer.steps=60", "optimizer.batch=20", "optimizer.lr=0.1", "samples=40", "max_drop=null", "max_flips=null")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, its data, and its INT8 made bad: ranges four times too wide, of everything but one Linear."""
    folder = tmp_path_factory.mktemp("world")
    write_squares(folder)
    source = write_teacher(folder / "teacher")
    with Artifact.create(folder / "checkpoint", kind=Kind.CHECKPOINT, stage="distill", key="k") as draft:
        model = dual_encoder_from_hugging_face(source)
        save_checkpoint(model, draft.path)
        draft.model = model.config
        draft.preprocessing = image_processing(source)
        draft.tokenizer = save_text_processing(source, draft.path)
    given = parse_assignments([*PLAIN, "samples=40", "batch=20", "max_flips=1", f'keep=["{KEPT}"]'])
    plain = standalone.quantize(folder / "checkpoint", folder / "plain", {"data.train": str(folder), **given})
    badly_fitted(plain, folder / "bad", 4)
    return folder


def qat(world: Path, out: Path, *overrides: str, source: str = "bad") -> Artifact:
    return standalone.qat(world / source, out, parse_assignments([*FEW, *overrides]))


@pytest.fixture(scope="module")
def trained(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return qat(world, tmp_path_factory.mktemp("trained") / "qat")


def test_training_lowers_the_drift_of_a_bad_fit(world: Path, trained: Artifact) -> None:
    facts = trained.manifest.facts["qat"]
    assert facts["trained"] and facts["accepted"]
    left = [
        facts["drift_after"][kind][tower] / drift
        for kind, towers in facts["drift_before"].items()
        for tower, drift in towers.items()
    ]
    assert len(left) == 4 and max(left) < 1 and np.mean(left) < 0.8
    measured = trained.manifest.metrics["calibration"]["drift"]["unsigned"]["image"]
    assert measured == pytest.approx(facts["drift_after"]["unsigned"]["image"], rel=1e-3)
    assert facts["judged_on"] == {"spec": str(world), "pairs": 60}


def test_float_weights_stay_the_reference_and_what_was_kept_stays_kept(world: Path, trained: Artifact) -> None:
    bad, checkpoint = Artifact.open(world / "bad"), Artifact.open(world / "checkpoint")
    changed = {name for name in bad.manifest.files if trained.manifest.files[name] != bad.manifest.files[name]}
    assert changed == {"ranges.json", INTEGERS, SEEN_IMAGES} and set(trained.manifest.files) == set(bad.manifest.files)
    assert trained.manifest.facts["qat"]["reference"] == checkpoint.digest
    assert trained.manifest.facts["kept"] == [KEPT]
    assert not any(KEPT in name for name in load_file(trained.file(INTEGERS)))
    rows = {row["module"]: row for row in trained.manifest.facts["sensitivity"]}
    before = {row["module"]: row for row in bad.manifest.facts["sensitivity"]}
    assert rows[KEPT] == before[KEPT] and set(rows) == set(before)
    drifts = [row["drift"] for row in trained.manifest.facts["sensitivity"]]
    assert drifts == sorted(drifts, reverse=True) and drifts != [row["drift"] for row in before.values()]


def test_copies_of_what_is_trained_on_judge_nothing(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert len(seen_images(Artifact.open(world / "bad")) or ()) == 40
    files = [(f"copy-{index}", sample.image, sample.captions[0]) for index, sample in enumerate(read(str(world)))][:30]
    files += [(f"other-{seed}", picture(seed), "a square of red 1") for seed in range(10)]
    copies = write_tar(
        tmp_path / "v.tar",
        [
            (f"{key}.{end}", data)
            for key, image, text in files
            for end, data in (("png", image), ("txt", text.encode()))
        ],
    )
    found = qat(world, tmp_path / "q", f"data.validation={copies}", "optimizer.steps=2")
    assert "30 of 40 images of" in " ".join(capsys.readouterr().err.split())
    assert found.manifest.facts["qat"]["judged_on"]["pairs"] == 10
    trained_on = {image_of(sample.mark) for sample in read(str(world))}
    assert (seen_images(found) or {b""}) <= trained_on and (
        not found.manifest.facts["qat"]["accepted"] or len(trained_on) == 60
    )


def test_it_exports_as_a_quantized_checkpoint_does(world: Path, trained: Artifact, tmp_path: Path) -> None:
    ours = standalone.export(str(trained.path), tmp_path / "ours")
    theirs = standalone.export(str(world / "bad"), tmp_path / "theirs")
    assert set(ours.manifest.files) == set(theirs.manifest.files)
    assert {graph.precision for graph in ours.manifest.graphs} == {"int8"} and ours.manifest.facts["kept"] == [KEPT]
    twins = [
        standalone.export(str(p), tmp_path / p.name, {"precisions": ("fp32",)}) for p in (trained.path, world / "bad")
    ]
    assert len({one.manifest.files["image-fp32.onnx"].sha256 for one in twins}) == 1


def test_pairs_stay_within_16_bits(trained: Artifact) -> None:
    for linear in linears_from_tensors(load_file(trained.file(INTEGERS)), "unsigned").values():
        first, second = linear.weight[0::2].astype(int), linear.weight[1::2].astype(int)
        assert (np.abs(first + second)[first * second > 0] <= 128).all()


def test_killed_and_run_again_ends_with_the_same_digest(
    world: Path, trained: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps, original = 0, fakequant.TrainedLinears.embed

    def dying(self: fakequant.TrainedLinears, *arguments: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps == 2 * 12 + 1:  # both kinds of graph, each step
            raise KeyboardInterrupt
        return original(self, *arguments)

    monkeypatch.setattr(fakequant.TrainedLinears, "embed", dying)
    every = "optimizer.save_minutes=1e-9"
    with pytest.raises(KeyboardInterrupt):
        qat(world, tmp_path / "qat", every)
    last = max(path.name for path in (tmp_path / ".qat.work").glob("state-*.safetensors"))
    assert not (tmp_path / "qat").exists()
    found = qat(world, tmp_path / "qat", every)
    left = 60 - int(last[6:12])
    assert left < 60 and steps == 2 * (12 + left) + 1
    for name in ("ranges.json", INTEGERS):
        assert found.manifest.files[name] == trained.manifest.files[name]


def test_a_budget_that_holds_passes_the_fit_through(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmcompress.compress.int8.qat.optimize", None)
    found = qat(world, tmp_path / "qat", "max_drop=1.0", "max_flips=1.0")
    bad = Artifact.open(world / "bad")
    assert found.manifest.files == bad.manifest.files
    facts = dict(found.manifest.facts)
    about = facts.pop("qat")
    assert {**facts, "budget": None} == {**bad.manifest.facts, "budget": None} and facts["budget"] == 1.0
    assert (about["trained"], about["accepted"], about["drift_after"], about["parts"]) == (False, False, None, {})


def test_what_comes_no_closer_is_passed_through(world: Path, tmp_path: Path) -> None:
    found = qat(world, tmp_path / "qat", "optimizer.lr=30", source="plain")
    assert found.manifest.files == Artifact.open(world / "plain").manifest.files
    about = found.manifest.facts["qat"]
    assert about["trained"] and not about["accepted"] and about["r10_lost_before"] == about["r10_lost_after"]
    assert about["drift_after"]["signed"]["text"] > about["drift_before"]["signed"]["text"]


def test_every_part_is_taken_only_where_it_is_closer() -> None:
    def fit_of(value: int) -> Fit:
        one = IntegerLinear(np.full((2, 2), value, np.int8), np.ones(2, np.float32), np.zeros(2, np.float32))
        names = ("image.blocks.0.qkv", "text.blocks.0.qkv")
        ranges = {name: {"low": -value, "high": value, "absmax": value} for name in names}
        return Fit(ranges, {kind: dict.fromkeys(names, one) for kind in ("signed", "unsigned")})  # type: ignore

    before = {kind: {"image": 1.0, "text": 1.0} for kind in ("signed", "unsigned")}
    after = {"signed": {"image": 0.5, "text": 1.0}, "unsigned": {"image": 2.0, "text": 0.5}}
    chosen, parts = closer(fit_of(1), fit_of(2), before, after)
    assert parts == {"signed": {"image": True, "text": False}, "unsigned": {"image": False, "text": True}}
    assert chosen.linears["signed"]["image.blocks.0.qkv"].weight[0, 0] == 2
    assert chosen.linears["unsigned"]["image.blocks.0.qkv"].weight[0, 0] == 1
    assert chosen.ranges["image.blocks.0.qkv"] == {"low": -1, "high": 1, "absmax": 2}
    assert chosen.ranges["text.blocks.0.qkv"] == {"low": -2, "high": 2, "absmax": 1}


def test_what_is_needed_and_what_counts_as_gained() -> None:
    drift = {"signed": {"image": 1e-4, "text": 0.0}}
    before, worse, more = (FitCost(drift, Cost(*figures)) for figures in ((0.01, 0.1), (0.02, 0.1), (0.01, 0.2)))
    none, anything = FitCost({"signed": {"image": 0.0}}, Cost(0.0, 0.0)), Budget(None, None, 100)
    assert needed(before, Budget(0.005, None, 100)) and not needed(before, Budget(0.01, None, 100))
    assert needed(before, Budget(0.01, 0.09, 100)) and not needed(before, Budget(None, 0.1, 100))
    assert needed(before, anything) and not needed(none, anything)
    some, nothing = {"signed": {"image": True}}, {"signed": {"image": False}}
    both = Budget(0.005, 0.005, 100)
    assert gained(some, before, before, both) and not gained(nothing, before, before, both)  # type: ignore[arg-type]
    assert not gained(some, before, worse, both), "closer, and further from the budget"  # type: ignore[arg-type]
    assert not gained(some, before, more, both)  # type: ignore[arg-type]
    assert gained(some, before, worse, anything) and gained(some, before, more, Budget(0.005, None, 100))  # type: ignore[arg-type]


def test_a_checkpoint_in_float_is_refused(world: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"checkpoint has no ranges\.json, so it is no quantized checkpoint") as caught:
        standalone.qat(world / "checkpoint", tmp_path / "x", {"data.train": str(world)})
    assert caught.value.exit_code == 2 and "mmcompress quantize" in caught.value.hint
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("data", [(), ("--data", "nowhere")])
def test_what_can_never_be_trained_is_said_before_data_is_asked_for(
    world: Path, tmp_path: Path, cli: Callable[..., Any], data: tuple[str, ...]
) -> None:
    done = cli("qat", world / "checkpoint", "--out", tmp_path / "out", *data)
    assert done.code == 2 and "has no ranges.json, so it is no quantized checkpoint" in done.err


def test_ranges_and_integers_that_do_not_belong_together_are_refused(world: Path, tmp_path: Path) -> None:
    bad = Artifact.open(world / "bad")
    with Artifact.create(tmp_path / "mixed", kind=Kind.CHECKPOINT, stage="quantize", key="k") as draft:
        draft.inherit(bad, *bad.manifest.files)
        tensors = load_file(bad.file(INTEGERS))
        gone = "signed/image.blocks.0.out"
        save_file({n: t for n, t in tensors.items() if not n.startswith(gone)}, draft.path / INTEGERS)
    with pytest.raises(CorruptInputError, match=r"image\.blocks\.0\.out is not in both"):
        standalone.qat(tmp_path / "mixed", tmp_path / "x", {"data.train": str(world)})


def test_what_training_would_refuse_is_refused_before_anything_is_judged(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def judged(*_: object) -> None:
        raise AssertionError("it was judged first")

    monkeypatch.setattr(stage, "fit_cost", judged)
    with pytest.raises(UsageError, match="a batch of 64 pairs was asked for, and there are 60"):
        qat(world, tmp_path / "qat", "optimizer.batch=64")
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(MissingRequirementError, match="'tensorboard'"):
        qat(world, tmp_path / "qat", f"optimizer.tensorboard={tmp_path / 'points'}")


def test_too_few_pairs_to_train_on_are_said_before_a_budget_is_judged(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def judged(*_: object) -> None:
        raise AssertionError("it was judged first")

    monkeypatch.setattr(stage, "fit_cost", judged)
    for batch, said in (("64", True), ("20", False)):
        with pytest.raises(AssertionError, match="judged first"):
            qat(world, tmp_path / "qat", f"optimizer.batch={batch}", "max_drop=0.1")
        told = " ".join(capsys.readouterr().err.split())
        assert ("60 pairs are less than a batch of 64: INT8 beyond its budget cannot be trained" in told) is said
