"""The quantize stage on a small world: what its artifact holds and says, and what it refuses."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from clip_world import write_squares, write_teacher
from photos import write_photos
from rich.console import Console
from safetensors.numpy import load_file
from torch import Tensor

from mmcompress.artifact import Artifact
from mmcompress.budget import Cost
from mmcompress.cli.show_compress import quantize_summary
from mmcompress.compress.int8 import sensitivity
from mmcompress.compress.int8.samples import Captioned, filled_up, warn_of_few
from mmcompress.compress.int8.sensitivity import fewest_kept
from mmcompress.config import DataConfig, DriftConfig, QuantizeConfig, VerdictConfig
from mmcompress.data.fingerprint import fingerprint
from mmcompress.data.sample import image_of, mark_of
from mmcompress.errors import UsageError
from mmcompress.export.export import check_has_integers
from mmcompress.export.pixels import image_processing
from mmcompress.export.texts import save_text_processing
from mmcompress.huggingface import dual_encoder_from_hugging_face, save_checkpoint
from mmcompress.int8 import INTEGERS, TABLE_FACT, linear_modules, linears_from_tensors
from mmcompress.manifest import Kind, TextProcessing
from mmcompress.measure.drift.drift import drift_document
from mmcompress.measure.verdict.heldout import held_out
from mmcompress.pipeline import standalone
from mmcompress.pipeline.recipe import parse_assignments
from mmcompress.seen import JUDGED_ON, seen_images
from mmcompress.twins import float_model

pytestmark = pytest.mark.usefixtures("better_than_chance")

SMALL = ["samples=48", "held=48", "batch=8", "smooth=[0.5]"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint and its data."""
    folder = tmp_path_factory.mktemp("world")
    write_squares(folder)
    source = write_teacher(folder / "teacher")
    with Artifact.create(folder / "checkpoint", kind=Kind.CHECKPOINT, stage="distill", key="k") as draft:
        model = dual_encoder_from_hugging_face(source)
        save_checkpoint(model, draft.path)
        draft.model = model.config
        draft.preprocessing = image_processing(source)
        draft.tokenizer = save_text_processing(source, draft.path)
    return folder


def quantize(world: Path, out: Path, *overrides: str) -> Artifact:
    return standalone.quantize(
        world / "checkpoint", out, {"data.train": str(world), **parse_assignments([*SMALL, *overrides])}
    )


def test_the_artifact_is_a_checkpoint_with_ranges_integers_and_a_record_of_choices(world: Path, tmp_path: Path) -> None:
    found = quantize(world, tmp_path / "q", "max_drop=1", "max_flips=1")
    facts, linears = found.manifest.facts, 4 * 4 * 2
    ranges = json.loads(found.file("ranges.json").read_text())
    operands = {name for name in ranges if ".attention." in name}
    assert len(operands) == 4 * 4 * 2 and len(ranges) == linears + len(operands)
    assert facts["linears"] == linears and facts["kept"] == []
    assert all(set(entry) == {"low", "high", "absmax"} for entry in ranges.values())
    for kind in ("signed", "unsigned"):
        stored = linears_from_tensors(load_file(found.file(INTEGERS)), kind)  # type: ignore[arg-type]
        assert set(stored) == set(ranges) - operands
        assert stored["image.blocks.0.qkv"].weight.shape == (64, 192)
    assert [set(row) for row in facts["sensitivity"]] == [{"module", "drift", "kept"}] * (linears + 1), "and the table"
    assert facts[TABLE_FACT] == "int8"
    drifts = [row["drift"] for row in facts["sensitivity"]]
    assert drifts == sorted(drifts, reverse=True) and facts["budget"] == 1
    for tower in ("image", "text"):
        assert {"smooth", "ranges", "rounding", "bias"} == set(facts["choices"][tower])
    assert quantize(world, tmp_path / "again" / "q", "max_drop=1", "max_flips=1").digest == found.digest
    with (page := Console(width=200)).capture() as shown:
        page.print(quantize_summary(found, None)[1])
    said = shown.get()
    assert f"INT8: {linears} of {linears} products" in said and "of the R@10 hits" in said
    assert f"mmcompress export {found.path}" in said
    graphs = standalone.export(str(found.path), tmp_path / "onnx", {"precisions": ("fp32", "int8")})
    assert graphs.manifest.facts["kept"] == []
    source = Artifact.open(world / "checkpoint")
    assert source.manifest.files["model.safetensors"] != found.manifest.files["model.safetensors"], "smoothed"
    assert float_model(source) == float_model(found) == float_model(graphs) is not None


def test_no_more_samples_are_said_to_be_seen_than_there_are(world: Path, tmp_path: Path) -> None:
    quick = ("rounding=nearest", "smooth=[]", "sensitivity=false")
    found = quantize(world, tmp_path / "q", "samples=512", *quick)
    assert found.manifest.facts["seen"]["pairs"] == 60, "one pass over sixty squares"
    with (page := Console(width=200)).capture() as shown:
        page.print(quantize_summary(found, None)[1])
    assert "calibrated on 60 samples, which are all there are; 512 were asked for" in shown.get()
    few = quantize(world, tmp_path / "few", "samples=44", *quick)
    assert few.manifest.facts["seen"]["pairs"] == 48, "in whole batches"
    with (page := Console(width=200)).capture() as shown:
        page.print(quantize_summary(few, None)[1])
    assert "calibrated on" not in shown.get()


def test_what_judged_is_called_what_it_is(world: Path, tmp_path: Path) -> None:
    """Half of what is held fits no weight, one batch does both, and validation pairs have to be others."""
    quick = ("max_drop=1", "max_flips=1", "rounding=nearest", "smooth=[]")
    for name, settings, said in (
        ("half", (), "on calibration samples that no weight was fitted to it loses"),
        ("one", ("held=8",), "on the samples that calibrated it, which says little of others, it loses"),
        ("same", (f"data.validation={world}",), "on the samples that calibrated it, which says little of others"),
        ("other", (f"data.validation=part:0-4/10:{world}",), "on validation samples it loses"),
    ):
        found = quantize(world, tmp_path / name, *quick, *settings)
        assert found.manifest.parents["data.train"] == fingerprint(str(world)), "by which a verdict knows it again"
        with (page := Console(width=200)).capture() as shown:
            page.print(quantize_summary(found, None)[1])
        assert said in shown.get(), name


@pytest.fixture
def photos(tmp_path: Path, coloured_squares: Path) -> Path:
    """`train` has photos, `copies` twenty of them under other names, `mixed` these and as many others."""
    write_photos(tmp_path / "train", coloured_squares, 2)
    others = write_photos(tmp_path / "others", coloured_squares, 3)
    for name in ("copies", "mixed"):
        (tmp_path / name).mkdir()
        for index, path in enumerate(sorted((tmp_path / "train").iterdir())[:20]):
            shutil.copyfile(path, tmp_path / name / f"holiday {index}.png")
    for path in sorted(others.glob("2-*"))[:20]:
        shutil.copyfile(path, tmp_path / "mixed" / path.name)
    return tmp_path


def test_copies_of_what_calibrated_judge_nothing(
    world: Path, photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from mmcompress.compress.int8 import quantize as calibrate

    judged: list[int] = []
    original = calibrate.keep_sensitive

    def keep(fitted: Any, ranked: Any, deciding: Any, *more: Any) -> Any:
        judged.append(sum(len(batch.pixels) for batch in deciding))
        return original(fitted, ranked, deciding, *more)

    monkeypatch.setattr(calibrate, "keep_sensitive", keep)
    quick = {"samples": 512, "held": 32, "batch": 8, "rounding": "nearest", "smooth": (), "max_drop": 1, "max_flips": 1}
    for name, judging, said in (("mixed", 20, "20 of 40 images of"), ("copies", 20, "warning: all 20 images of")):
        given = {"data.train": str(photos / "train"), "data.validation": str(photos / name), **quick}
        found = standalone.quantize(world / "checkpoint", photos / f"q-{name}", {**given, "held": 40})
        assert said in " ".join(capsys.readouterr().err.split()) and judged.pop() == judging
        assert found.manifest.facts[JUDGED_ON] == ("validation" if name == "mixed" else "seen")
        files = [path.read_bytes() for path in (photos / "train").iterdir()]
        assert seen_images(found) == {image_of(mark_of(image, ())) for image in files}


def test_a_verdict_leaves_copies_of_what_calibrated_out(
    world: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {"data.train": str(photos / "train"), "batch": 8, "held": 16, "sensitivity": False, "smooth": ()}
    found = standalone.quantize(world / "checkpoint", photos / "q", {**given, "rounding": "nearest"})
    both = VerdictConfig(data=DataConfig(validation=f"{photos}/{{mixed,others}}"), samples=40)
    held = held_out(found, both)
    assert 20 <= held.left_out <= 20 + 2 * 32 and len(held.image_group) == 40, "52 of these are no copies"
    assert "were calibrated on, or are copies of such: they are left out" in " ".join(capsys.readouterr().err.split())
    with pytest.raises(UsageError, match="has 0 photos that the calibration has not seen"):
        held_out(found, VerdictConfig(data=DataConfig(validation=str(photos / "copies"))))
    graphs = standalone.export(str(found.path), photos / "onnx", {"precisions": ("fp32", "int8")})
    drifted = drift_document([graphs], DriftConfig(data=DataConfig(test=str(photos / "mixed"))))
    assert drifted.rows[0].calibrated_images == 20
    floats = standalone.export(str(world / "checkpoint"), photos / "floats")
    assert drift_document([floats], DriftConfig(data=DataConfig(test="demo:val"))).rows[0].calibrated_images is None
    assert "20 of 40 test images calibrated it" in " ".join(capsys.readouterr().err.split())


def test_what_is_to_be_kept_is_kept_and_a_typo_is_named(world: Path, tmp_path: Path) -> None:
    kept = "text.blocks.1.fc2"
    found = quantize(world, tmp_path / "q", f'keep=["{kept}"]', "rounding=nearest", "smooth=[]", "sensitivity=false")
    assert found.manifest.facts["kept"] == [kept] and found.manifest.facts["sensitivity"] == []
    assert kept not in json.loads(found.file("ranges.json").read_text())
    assert not any(kept in name for name in load_file(found.file(INTEGERS)))
    same = load_file(found.file("model.safetensors"))
    for name, values in load_file(world / "checkpoint" / "model.safetensors").items():
        np.testing.assert_array_equal(same[name], values)
    with pytest.raises(UsageError, match=r"there is no Linear 'text\.blocks\.1\.fc3' in this model") as caught:
        quantize(world, tmp_path / "x", 'keep=["text.blocks.1.fc3"]')
    assert "text.blocks.1.fc" in caught.value.hint and caught.value.exit_code == 2
    every = [name for name in linear_modules(found.model) if name.startswith("text.")]
    with pytest.raises(UsageError, match="names every Linear of the text tower, so no INT8 of it would be left"):
        quantize(world, tmp_path / "x", f"keep={json.dumps(every)}")
    assert not (tmp_path / "x").exists()
    by_budget = found.manifest.model_copy(update={"facts": {**found.manifest.facts, "kept": every}})
    check_has_integers(replace(found, manifest=by_budget), "image")
    with pytest.raises(UsageError, match="keeps every Linear of the text tower in float, so there is no INT8 of it"):
        check_has_integers(replace(found, manifest=by_budget), "text")


def test_a_budget_that_cannot_hold_keeps_linears_in_float(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A loss of 0.01 for each of 32 Linears as integers: a budget of 0.295 leaves 29, and gives back none."""

    def used(kept: frozenset[str]) -> float:
        return 0.01 * (32 - len(kept)) / 0.295

    monkeypatch.setattr(sensitivity, "fewest_kept", lambda drifts, _: fewest_kept(drifts, used))
    monkeypatch.setattr(sensitivity, "cost", lambda *_: Cost(0.32, 0.0))
    found = quantize(world, tmp_path / "q", "max_drop=0.1", "max_flips=1", "rounding=nearest", "smooth=[]")
    ranking = [row["module"] for row in found.manifest.facts["sensitivity"]]
    assert found.manifest.facts["kept"] == sorted(ranking[:3])


def test_flips_have_a_budget_of_their_own_on_validation_pairs(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mmcompress.compress.int8 import quantize as calibrate

    seen: list[str] = []
    original = calibrate.held_pairs

    def held(source: object, spec: str, config: object) -> object:
        seen.append(spec)
        return original(source, spec, config)  # type: ignore[arg-type]

    monkeypatch.setattr(calibrate, "held_pairs", held)
    monkeypatch.setattr(sensitivity, "cost", lambda *_: Cost(0.0, 0.5))
    settings = ("max_drop=1", "max_flips=0.2", "rounding=nearest", "smooth=[]")
    found = quantize(world, tmp_path / "q", f"data.validation={world}", *settings)
    assert seen == [str(world), str(world)], "one to fit, one to judge"
    assert len(found.manifest.facts["kept"]) == 33 and found.manifest.metrics["calibration"]["flips"] == 0.5


def test_images_choose_between_the_labels(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = tmp_path / "labels.txt"
    labels.write_text("\n".join(f"a square of red {r}" for r in range(8)))
    texts: list[int] = []
    original = sensitivity.cost

    def counted(reference: tuple[Tensor, Tensor], found: tuple[Tensor, Tensor], captioned: bool) -> Cost:
        texts[:] = [len(reference[1]), len(found[1])]
        return original(reference, found, captioned)

    monkeypatch.setattr(sensitivity, "cost", counted)
    quantize(world, tmp_path / "q", f"data.labels={labels}", "max_flips=1", "rounding=nearest", "smooth=[]")
    assert texts == [24 + 8, 24 + 8], "half of the 48 samples judge, with their captions beside the labels"


def test_a_set_that_is_read_again_and_again_is_no_judge(capsys: pytest.CaptureFixture[str]) -> None:
    def warned(images: list[Any], texts: list[Any]) -> str:
        warn_of_few(config, images, texts)
        return " ".join(capsys.readouterr().err.split())

    config = QuantizeConfig(data=DataConfig(), max_drop=None, max_flips=None)
    one, many = np.zeros((1, 3, 4, 4)), [np.arange(64.0).reshape(64, 1)]
    assert "1 different images judge" in warned([one] * 80, many)
    assert not warned(many, [np.arange(20).reshape(20, 1)])
    assert "19 different texts calibrate the text tower" in warned(many, [np.arange(19).reshape(19, 1)] * 4)
    config = QuantizeConfig(data=DataConfig(), max_drop=0.005, max_flips=0.02)
    assert "64 different images judge INT8, so what it costs is hardly known; 100 are needed" in warned(many, many)


def test_photos_by_year_are_told_to_be_classes(
    world: Path, tmp_path: Path, coloured_squares: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for year in ("2023", "2024"):
        shutil.copytree(coloured_squares, tmp_path / "photos" / year)
    given = {"data.train": str(tmp_path / "photos"), "max_drop": 1.0, "max_flips": 1.0}
    standalone.quantize(world / "checkpoint", tmp_path / "q", {**given, "rounding": "nearest", "smooth": ()})
    said = " ".join(capsys.readouterr().err.split())
    assert said.count("was taken for 2 classes, whose names are the captions: 2023, 2024") == 1
    assert "warning: 2 different texts calibrate the text tower" in said


def test_texts_are_told_apart_whatever_their_batch_was_cut_to() -> None:
    text = TextProcessing(context=4, pad_token_id=0, eos_token_id=9)
    cut = [Captioned(torch.zeros(1), torch.tensor(tokens)) for tokens in ([[5, 9]], [[5, 9, 0], [5, 6, 9]])]
    rows = [row.tolist() for batch in filled_up(cut, text) for row in batch]
    assert rows == [[5, 9, 0, 0], [5, 9, 0, 0], [5, 6, 9, 0]]
