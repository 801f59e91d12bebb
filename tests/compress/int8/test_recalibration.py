"""Ranges that are given to another checkpoint, and two calibrations side by side."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clip_world import write_squares, write_teacher
from safetensors.numpy import load_file, save_file

from mmcompress.artifact import Artifact
from mmcompress.compress.int8.recalibration import compare_calibrations
from mmcompress.errors import UsageError
from mmcompress.export.pixels import image_processing
from mmcompress.export.texts import save_text_processing
from mmcompress.huggingface import dual_encoder_from_hugging_face, save_checkpoint
from mmcompress.int8 import INTEGERS, RANGES
from mmcompress.manifest import Kind
from mmcompress.pipeline import standalone
from mmcompress.pipeline.recipe import parse_assignments
from mmcompress.seen import seen_images

SMALL = ("samples=32", "held=32", "batch=8", "max_drop=1", "max_flips=1", "sensitivity=false")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two checkpoints of one architecture, `checkpoint` and `other`, and `fit`, the first one quantized."""
    folder = tmp_path_factory.mktemp("world")
    write_squares(folder)
    source = write_teacher(folder / "teacher")
    for name in ("checkpoint", "other"):
        with Artifact.create(folder / name, kind=Kind.CHECKPOINT, stage="distill", key=name) as draft:
            model = dual_encoder_from_hugging_face(source)
            save_checkpoint(model, draft.path)
            if name == "other":
                tensors = load_file(draft.path / "model.safetensors")
                nudged = {key: np.asarray(value * np.float32(1.02)) for key, value in tensors.items()}
                save_file(nudged, draft.path / "model.safetensors", {"format": "pt"})
            draft.model = model.config
            draft.preprocessing = image_processing(source)
            draft.tokenizer = save_text_processing(source, draft.path)
    quantize(folder, "checkpoint", folder / "fit", "smooth=[]", "method=minmax")
    return folder


def quantize(world: Path, name: str, out: Path, *overrides: str, ranges: Path | None = None) -> Artifact:
    return standalone.quantize(
        world / name, out, {"data.train": str(world), **parse_assignments([*SMALL, *overrides])}, ranges=ranges
    )


def test_images_that_made_the_ranges_are_seen_too(world: Path, tmp_path: Path) -> None:
    first = quantize(world, "checkpoint", tmp_path / "a", f"data.train=part:0-4/10:{world}", "smooth=[]")
    found = quantize(world, "checkpoint", tmp_path / "b", f"data.train=part:5-9/10:{world}", ranges=first.path)
    made, seen = seen_images(first), seen_images(found)
    assert made is not None and seen is not None and made < seen


def test_given_ranges_are_taken_as_they_are_and_integers_fitted_to_them(world: Path, tmp_path: Path) -> None:
    fit = Artifact.open(world / "fit")
    found = quantize(world, "other", tmp_path / "q", ranges=fit.path)
    assert found.file(RANGES).read_bytes() == fit.file(RANGES).read_bytes()
    assert found.manifest.parents["ranges"] == fit.digest
    for tower in ("image", "text"):
        assert set(found.manifest.facts["choices"][tower]) == {"rounding", "bias"}, "nothing was smoothed or ranged"
    same = load_file(found.file("model.safetensors"))
    for key, values in load_file(world / "other" / "model.safetensors").items():
        np.testing.assert_array_equal(same[key], values)
    own = quantize(world, "other", tmp_path / "own", "smooth=[]", "method=minmax")
    assert own.file(RANGES).read_bytes() != fit.file(RANGES).read_bytes()
    graphs = standalone.export(str(found.path), tmp_path / "onnx", {"precisions": ("int8",)})
    assert graphs.manifest.facts["kept"] == []


def test_the_ranges_of_a_model_given_back_to_it_give_the_same_integers(world: Path, tmp_path: Path) -> None:
    again = quantize(world, "checkpoint", tmp_path / "q", ranges=world / "fit")
    expected = load_file(world / "fit" / INTEGERS)
    for name, values in load_file(again.file(INTEGERS)).items():
        np.testing.assert_array_equal(values, expected[name])


def test_ranges_that_do_not_fit_are_named(world: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"checkpoint has no ranges\.json, so it is no quantized checkpoint") as caught:
        quantize(world, "other", tmp_path / "q", ranges=world / "checkpoint")
    assert "mmcompress quantize" in caught.value.hint
    kept = quantize(world, "checkpoint", tmp_path / "kept", 'keep=["image.blocks.1.fc1"]', "rounding=nearest")
    with pytest.raises(UsageError, match=r"no range of image\.blocks\.1\.fc1, since it stays in float there") as caught:
        quantize(world, "other", tmp_path / "q", ranges=kept.path)
    assert "max_drop=null" in caught.value.hint
    odd = ("text.blocks.9.qkv", {}), "has a range of text.blocks.9.qkv, which this"
    for change, said in (odd, (None, "no range of image.blocks.0.attention.query")):
        with Artifact.create(tmp_path / "odd", kind=Kind.CHECKPOINT, stage="quantize", key=said) as draft:
            ranges = json.loads((world / "fit" / RANGES).read_text())
            if change:
                ranges[change[0]] = change[1]
            else:
                del ranges["image.blocks.0.attention.query"]
            (draft.path / RANGES).write_text(json.dumps(ranges))
            draft.inherit(Artifact.open(world / "fit"))
        with pytest.raises(UsageError, match=said):
            quantize(world, "other", tmp_path / "q", ranges=tmp_path / "odd")
    assert not (tmp_path / "q").exists()


def test_ranges_of_a_model_that_was_smoothed_otherwise_are_refused(world: Path, tmp_path: Path) -> None:
    with Artifact.create(tmp_path / "smoothed", kind=Kind.CHECKPOINT, stage="quantize", key="s") as draft:
        (draft.path / RANGES).write_bytes((world / "fit" / RANGES).read_bytes())
        tensors = load_file(world / "fit" / "model.safetensors")
        tensors["vision_model.encoder.layers.1.layer_norm2.weight"] *= np.float32(1.5)
        save_file(tensors, draft.path / "model.safetensors", {"format": "pt"})
        draft.inherit(Artifact.open(world / "fit"))
    with pytest.raises(
        UsageError, match=r"are of other activations: .*layers\.1\.layer_norm2\.weight differs"
    ) as caught:
        quantize(world, "other", tmp_path / "q", ranges=tmp_path / "smoothed")
    assert "smooth=[]" in caught.value.hint
    with Artifact.create(tmp_path / "narrow", kind=Kind.CHECKPOINT, stage="quantize", key="n") as draft:
        (draft.path / RANGES).write_bytes((world / "fit" / RANGES).read_bytes())
        name = "vision_model.encoder.layers.0.layer_norm1.weight"
        save_file({**tensors, name: tensors[name][:32]}, draft.path / "model.safetensors", {"format": "pt"})
        draft.inherit(Artifact.open(world / "fit"))
    with pytest.raises(UsageError, match=r"is 32 channels wide at .*, and .*other 64"):
        quantize(world, "other", tmp_path / "q", ranges=tmp_path / "narrow")
    assert not (tmp_path / "q").exists()


def test_two_calibrations_are_compared_by_their_steps(world: Path, tmp_path: Path) -> None:
    narrower = quantize(world, "checkpoint", tmp_path / "q", "smooth=[]", "method=percentile", "percentile=90")
    compared = compare_calibrations(world / "fit", narrower.path)
    pairs = {pair.module: pair for pair in compared.ranges}
    assert len(pairs) == 4 * 4 * 2 * 2
    ratios = [pair.ratio for pair in compared.ranges if pair.ratio is not None]
    assert len(ratios) == len(pairs) and ratios == sorted(ratios), "all are narrower, the narrowest first"
    assert ratios[0] < 0.8
    fc2 = pairs["image.blocks.0.fc2"]
    assert fc2.a and fc2.b and compared.drift[0]
    assert fc2.ratio == pytest.approx((fc2.b["high"] - fc2.b["low"]) / (fc2.a["high"] - fc2.a["low"]), rel=1e-9)
    assert fc2.methods == ("minmax", "percentile")
    assert pairs["image.blocks.0.attention.values"].ratio == 1 and compared.drift[0]["unsigned"]["image"] > 0


def test_the_command_prints_the_comparison(cli: Callable[..., Any], world: Path, tmp_path: Path) -> None:
    kept = quantize(
        world, "checkpoint", tmp_path / "kept", 'keep=["text.blocks.0.out"]', "rounding=nearest", "smooth=[]"
    )
    done = cli("compare", world / "fit", kept.path)
    assert done.code == 0 and "text.blocks.0.out" in done.out and "drift of A: unsigned image" in done.out
    done = cli("compare", world / "fit", kept.path, "--json")
    rows = json.loads(done.out.splitlines()[-1])["ranges"]
    (missing,) = (row for row in rows if row["b"] is None)
    assert missing["module"] == "text.blocks.0.out" and missing["ratio"] is None
    done = cli("compare", world / "fit", world / "other")
    assert done.code == 2 and "is an artifact of kind 'checkpoint'" in done.err
