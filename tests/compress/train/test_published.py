"""Published towers as timm's folders hold them: read by name, and refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from mmcompress.compress.train import student as students
from mmcompress.compress.train.published import read_published
from mmcompress.compress.train.student import student_from_published
from mmcompress.config import DistillConfig, StudentConfig
from mmcompress.convnames import conv_entries
from mmcompress.errors import CorruptInputError, UsageError
from mmcompress.manifest import TextProcessing
from mmcompress.model import DualEncoder
from mmcompress.pipeline.outside import outside

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
TEXT = TextProcessing(context=8, pad_token_id=0, eos_token_id=1)


def config_of(**changes: Any) -> dict[str, Any]:
    """As timm's `save_for_hf` writes it, of what counts here; older ones have no `model_args`."""
    cfg = {"input_size": [3, 64, 64], "mean": MEAN, "std": STD, "crop_pct": 0.95, "interpolation": "bicubic"}
    return {
        "architecture": "mobilenetv4_conv_small",
        "num_classes": 7,
        "num_features": 960,
        "global_pool": "avg",
        "model_args": {"in_chans": 3, "num_classes": 7, "global_pool": "avg"},
        "pretrained_cfg": cfg,
        **changes,
    }


def coloured(**colours: Any) -> dict[str, Any]:
    return {"pretrained_cfg": {"input_size": [3, 64, 64], "mean": MEAN, "std": STD, **colours}}


@pytest.fixture
def folder(tmp_path: Path) -> Callable[..., Path]:
    def write(tensors: dict[str, torch.Tensor] | None = None, **changes: Any) -> Path:
        (tmp_path / "config.json").write_text(json.dumps(config_of(**changes)))
        save_file(published_tensors() | (tensors or {}), tmp_path / "model.safetensors")
        return tmp_path

    return write


def published_tensors() -> dict[str, torch.Tensor]:
    """Of a small tower, and all that a published file has beside: a classifier, and counters of batches."""
    generator = torch.Generator().manual_seed(0)
    entries = [*conv_entries(students.mobilenetv4("conv-s", 64))]
    shapes = {name: tuple(map(int, shape)) for entry in entries for name, shape in entry.theirs.items()}
    tensors = {name: 0.1 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    tensors |= {name: 1 + tensor.abs() for name, tensor in tensors.items() if name.endswith("running_var")}
    rest = {"classifier.weight": torch.zeros(7, 1280), "classifier.bias": torch.zeros(7)}
    return {**tensors, **rest, "bn1.num_batches_tracked": torch.tensor(9)}


def started(place: Path, **asked: Any) -> DualEncoder:
    student = StudentConfig(source=str(place), **asked)
    assert student.published
    return student_from_published(student, read_published(place), 24, TEXT, 300, seed=0)


def test_weights_are_read_by_name(folder: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    model = started(folder())
    tensors = published_tensors()
    state = model.state_dict()
    assert torch.equal(state["image.stem.weight"], tensors["conv_stem.weight"])
    assert torch.equal(state["image.blocks.4.middle.norm.variance"], tensors["blocks.2.0.dw_mid.bn.running_var"])
    assert torch.equal(state["image.head.norm.mean"], tensors["norm_head.running_mean"])
    assert model.config.image.image_size == 64 and model.config.embed_dim == 24
    assert "classifier of 7 classes is left out" in " ".join(capsys.readouterr().err.split())
    assert started(folder(), image_size=96).config.image.image_size == 96


def test_its_colours_are_its_own(folder: Callable[..., Path]) -> None:
    found = read_published(folder())
    assert (list(found.mean), list(found.std), found.image_size) == (MEAN, STD, 64)
    flat = {**config_of().pop("pretrained_cfg"), "pretrained_cfg": None}
    assert read_published(folder(**flat)).std == found.std


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"architecture": "mobilenetv4_conv_small_050"}, UsageError, "cannot be a 'mobilenetv4_conv_small_050'"),
        ({"architecture": "resnet50"}, UsageError, "cannot be a 'resnet50'"),
        ({"architecture": None}, UsageError, "names no architecture"),
        ({"model_args": {"act_layer": "gelu"}}, UsageError, "act_layer = 'gelu' is not computed here"),
        ({"model_args": {"in_chans": 1}}, UsageError, "in_chans = 1 is not computed here"),
        ({"global_pool": "max", "model_args": None}, UsageError, "global_pool = 'max' is not computed here"),
        ({"pretrained_cfg": {"input_size": [1, 64, 64]}}, CorruptInputError, r"input_size is \[1, 64, 64\]"),
        ({"pretrained_cfg": {"input_size": [3, 64, 64], "mean": MEAN, "std": [0, 1, 1]}}, CorruptInputError, "std is"),
        (coloured(mean=[123.7, 116.3, 103.5]), CorruptInputError, "mean is .*, expected numbers from 0 to 1"),
        (coloured(mean=[True, False, True]), CorruptInputError, "expected a number for each of three colours"),
        (coloured(std=[1e-300] * 3), CorruptInputError, "std is .*, expected numbers from 0.001 to 1"),
        ({"pretrained_cfg": {"input_size": [3, 0, 0]}}, CorruptInputError, r"input_size is \[3, 0, 0\]"),
        ({"pretrained_cfg": {"input_size": [3, 10**9, 10**9]}}, CorruptInputError, "a square of 1 to 4096 pixels"),
        ({"pretrained_cfg": {"input_size": [3, 64.5, 64.5]}}, CorruptInputError, r"input_size is \[3, 64.5, 64.5\]"),
        ({"pretrained_cfg": {"input_size": [3, "64", "64"]}}, CorruptInputError, r"input_size is \[3, '64', '64'\]"),
        ({"pretrained_cfg": "in1k"}, CorruptInputError, "pretrained_cfg is 'in1k', expected an object"),
        ({"model_args": ["in_chans"]}, CorruptInputError, r"model_args is \['in_chans'\], expected an object"),
    ],
)
def test_folders_of_something_else_are_refused(
    folder: Callable[..., Path], changes: dict[str, Any], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        read_published(folder(**changes))


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({"conv_stem.weight": torch.zeros(32, 3, 5, 5)}, r"conv_stem.weight' has shape \(32, 3, 5, 5\), expected"),
        ({"blocks.2.0.se.weight": torch.zeros(3)}, "unexpected tensor 'blocks.2.0.se.weight'"),
        ({"bn1.weight": torch.full((32,), torch.nan)}, "bn1.weight' has numbers that are NaN"),
        ({"bn1.running_var": torch.full((32,), -1.0)}, "bn1.running_var' has a negative variance"),
    ],
)
def test_weights_that_do_not_belong_are_refused(
    folder: Callable[..., Path], tensors: dict[str, torch.Tensor], said: str
) -> None:
    with pytest.raises(CorruptInputError, match=said):
        started(folder(tensors))


@pytest.mark.parametrize("kind", [torch.int8, torch.float8_e4m3fn, torch.int64, torch.bool, torch.complex64])
def test_weights_that_are_no_floats_are_refused(folder: Callable[..., Path], kind: torch.dtype) -> None:
    name = str(kind).removeprefix("torch.")
    with pytest.raises(UsageError, match=f"conv_stem.weight' holds {name}, expected float32"):
        started(folder({"conv_stem.weight": torch.ones(32, 3, 3, 3).to(kind)}))


@pytest.mark.parametrize("kind", [torch.float64, torch.float16, torch.bfloat16])
def test_weights_of_other_floats_are_read(folder: Callable[..., Path], kind: torch.dtype) -> None:
    model = started(folder({"conv_stem.weight": torch.full((32, 3, 3, 3), 0.5).to(kind)}))
    assert (model.state_dict()["image.stem.weight"] == 0.5).all()


def test_other_weights_make_another_student(folder: Callable[..., Path]) -> None:
    config = DistillConfig.model_validate(
        {"teacher": {"source": "vit-b32"}, "data": {}, "student": {"source": str(folder())}}
    )
    before = outside(config)
    folder({"bn1.bias": torch.ones(32)})
    assert before["student.source"] != outside(config)["student.source"]
    preset = config.model_copy(update={"student": StudentConfig(source="mnv4-s")})
    assert "student.source" not in outside(preset)


def test_a_folder_by_its_bare_name_is_told_how_it_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tower").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="'tower' is no preset, and of a folder a path is asked for") as caught:
        students.check_preset(StudentConfig(source="tower"))
    assert caught.value.hint == "give ./tower"
