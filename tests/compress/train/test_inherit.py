"""Where an inherited student starts: where `prune` ends, once, and never in thin blocks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from clip_world import write_squares, write_teacher
from safetensors.torch import load_file
from small_model import random_pixels, small_model

from mmcompress.artifact import Artifact
from mmcompress.compress.train import distill, inherit
from mmcompress.compress.train.inherit import check_inherits, pruned_start, smallest_units
from mmcompress.compress.train.pairs import TrainingBatch
from mmcompress.errors import StoppedError, UsageError
from mmcompress.huggingface import dual_encoder_from_hugging_face
from mmcompress.pipeline import standalone

STILL = {"optimizer.steps": 1, "optimizer.batch": 20, "optimizer.lr": 1e-30, "optimizer.precision": "float32"}
"""A training that changes nothing."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    given = {"data.train": str(write_squares(folder)), "teacher.source": str(write_teacher(folder / "teacher"))}
    standalone.embed(folder / "embeddings", {**given, "views": 2})
    return folder


def started(world: Path, out: Path, **keys: Any) -> Artifact:
    given = {"student.source": "inherit:0.5", **STILL, **keys}
    return standalone.distill(out, given, embeddings=world / "embeddings")


def tensors(artifact: Artifact) -> dict[str, torch.Tensor]:
    return load_file(artifact.file("model.safetensors"))


@pytest.mark.parametrize("text", ["distill", "keep"])
def test_it_starts_where_prune_without_training_ends(world: Path, tmp_path: Path, text: str) -> None:
    student = started(world, tmp_path / "student", text=text)
    teacher = standalone.convert(str(world / "teacher"), tmp_path / "teacher")
    towers = ["image", "text"] if text == "distill" else ["image"]
    cut = {"target_macs": 0.5, "towers": towers, "samples": 60, "batch": 20, "smallest_mlp": 32}
    pruned = standalone.prune(teacher.path, tmp_path / "pruned", cut, embeddings=world / "embeddings")
    assert student.model == pruned.model
    assert student.model.image.macs(32) <= 0.5 * teacher.model.image.macs(32)
    assert (student.model.text == teacher.model.text) == (text == "keep")
    for name, tensor in tensors(pruned).items():
        torch.testing.assert_close(tensors(student)[name], tensor, atol=1e-6, rtol=1e-5, msg=name)


def test_inheriting_everything_is_the_teacher(world: Path, tmp_path: Path) -> None:
    student = tensors(started(world, tmp_path / "student", **{"student.source": "inherit:1"}))
    teacher = load_file(world / "teacher" / "model.safetensors")
    for name in teacher.keys() - {"logit_scale"}:
        torch.testing.assert_close(student[name], teacher[name], atol=1e-20, rtol=0, msg=name)


def test_a_stopped_run_goes_on_from_the_start_that_it_had(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = tensors(started(world, tmp_path / "whole"))

    def stop(*_: object, **__: object) -> None:
        raise StoppedError("stopped", "go on")

    with monkeypatch.context() as patched:
        patched.setattr(distill, "optimize", stop)
        with pytest.raises(StoppedError):
            started(world, tmp_path / "resumed")
    start = tmp_path / ".resumed.work" / "start" / "model.safetensors"
    with monkeypatch.context() as patched:
        patched.setattr(inherit, "pruned_model", stop)  # it is not pruned again
        assert {k: v.tolist() for k, v in tensors(started(world, tmp_path / "resumed")).items()} == {
            k: v.tolist() for k, v in whole.items()
        }
        with pytest.raises(StoppedError):
            started(world, tmp_path / "fresh")
    with monkeypatch.context() as patched:
        patched.setattr(distill, "optimize", stop)
        with pytest.raises(StoppedError):
            started(world, tmp_path / "resumed", seed=1)
    start.write_bytes(start.read_bytes()[:-4])
    started(world, tmp_path / "resumed", seed=1)
    assert "the start is made again" in capsys.readouterr().err


def test_few_pairs_are_warned_of(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    started(world, tmp_path / "student")
    assert "its start is fitted on 60 pairs, and not on 256" in capsys.readouterr().err


def pixels_of(number: int, tokens: torch.Tensor) -> TrainingBatch:
    return TrainingBatch([""] * number, random_pixels(number), tokens, torch.arange(number), None)


@pytest.mark.parametrize("share", [0.35, 0.5, 0.8])
def test_no_block_is_thinner_than_the_smallest(share: float) -> None:
    model = small_model(4)
    sample = pixels_of(16, torch.zeros(16, 4, dtype=torch.long))
    image = pruned_start(model, [sample], share, ["image"]).config.image
    assert smallest_units(model.config, ["image"]) == 32
    assert min(image.mlp) >= 32
    full = model.config.image.macs(model.config.embed_dim)
    assert 0.6 * share * full <= image.macs(model.config.embed_dim) <= share * full


def test_a_share_that_no_block_fits_is_refused_with_the_floor(world: Path) -> None:
    model = dual_encoder_from_hugging_face(world / "teacher").config
    with pytest.raises(UsageError, match=r"cannot be pruned to 0\.05x: the floor is") as caught:
        check_inherits(model, 0.05, ["image", "text"])
    floor = float(caught.value.what.split()[-1].removesuffix("x"))
    check_inherits(model, floor + 0.001, ["image"])
