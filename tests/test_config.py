"""What excludes each other in a config is refused when it is read, and what of a config is part of a key."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args

import pytest
import torch

from mmcompress.config import (
    LARGEST_IMAGE,
    BenchConfig,
    BuildConfig,
    DistillConfig,
    ExportConfig,
    Precision,
    PruneConfig,
    QuantizeConfig,
    validated,
    what_counts,
)
from mmcompress.data.imagefile import MAX_PIXELS
from mmcompress.distributed import world
from mmcompress.errors import MissingRequirementError, UsageError, nearest_choice, of_choices
from mmcompress.frozen import Config
from mmcompress.gates import Gates
from mmcompress.stages import STAGES

DATA = {"data": {"train": "demo:train"}}
NO_PART_OF_KEYS = {
    "bank.labels",
    "bank.templates",
    "trim_vocab",
    "sentences",
    *("data.train", "data.validation", "data.test", "data.original", "data.labels", "data.templates", "data.workers"),
    *("data.image_keys", "data.text_keys"),
    *("teacher.source", "student.tokenizer", "device", "strict"),
    *("optimizer.save_minutes", "optimizer.max_skipped", "optimizer.tensorboard"),
    *("parts", "recompute", "compile"),
}
"""What has a fingerprint, and what changes no result."""


@pytest.mark.parametrize(
    ("model", "values", "what"),
    [
        (PruneConfig, {"target_latency": "0.5x", "mlp": 0.5}, "mlp and target_latency exclude each other"),
        (PruneConfig, {"target_macs": 0.5, "heads": 0.5}, "heads and target_macs exclude each other"),
        (QuantizeConfig, {"sensitivity": False, "max_drop": 0.0}, "max_drop needs the ranking"),
        (QuantizeConfig, {"sensitivity": False, "max_flips": 0.01}, "max_flips needs the ranking"),
        (QuantizeConfig, {"device": "gpu"}, "device is 'gpu': String should match"),
    ],
)
def test_options_that_would_be_ignored_are_refused(model: type[Any], values: dict[str, object], what: str) -> None:
    with pytest.raises(UsageError, match=what):
        validated(model, {**DATA, **values}, "test")


def test_what_goes_together_is_taken() -> None:
    assert validated(PruneConfig, {**DATA, "target_macs": 0.5}, "test").target == ("macs", 0.5)
    for limits in ({}, {"max_drop": None}, {"max_drop": 1.0, "max_flips": 1.0}):
        validated(QuantizeConfig, {**DATA, "sensitivity": False, **limits}, "test")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_said() -> None:
    with pytest.raises(MissingRequirementError, match="torch finds no GPU here"), world("cuda:0"):
        pass


def changed(config: Config) -> Iterator[tuple[str, Config]]:
    """The config with each of its keys changed in turn."""
    for name in type(config).model_fields:
        if isinstance(value := getattr(config, name), Config):
            for path, other in changed(value):
                yield f"{name}.{path}", config.model_copy(update={name: other})
        else:
            yield name, config.model_copy(update={name: "another"})


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
@pytest.mark.parametrize("name", STAGES)
def test_a_key_is_of_what_a_result_depends_on(name: str) -> None:
    model = STAGES[name].config
    needed = {"teacher": {"source": "vit-b32"}, "data": {}, "student": {"source": "vit-s16"}, "target_ms": 3.0}
    config = model.model_validate({key: needed[key] for key in needed if key in model.model_fields})
    for path, other in changed(config):
        assert (what_counts(other) == what_counts(config)) == (path in NO_PART_OF_KEYS), path


@pytest.mark.parametrize(
    ("model", "values", "what", "hint"),
    [
        (ExportConfig, {"image_input": "anyy"}, "not `prepared`, `any`, or a height and a width", "image_input: What"),
        (ExportConfig, {"image_input": "99999999x99999999"}, "more than 64 MiPixel", "image_input: What"),
        (BuildConfig, {"batches": (8, 4, 2)}, "batches rise from 1", "batches: Smallest, usual and largest"),
        (BuildConfig, {"batches": (0, 1, 2)}, "batches rise from 1", "batches: Smallest, usual and largest"),
        (BuildConfig, {"workspace_mb": 64}, "workspace_mb is of TensorRT", "leave it out"),
        (Gates, {"max": {"kernel": 50}}, "there is no metric 'kernel'", "near names: kernels"),
    ],
)
def test_hints_say_what_is_wrong(model: Any, values: dict[str, Any], what: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        validated(model, values, "mmcompress x")
    assert what in caught.value.what and caught.value.hint.startswith(hint)


def test_the_largest_image_is_what_is_decoded() -> None:
    assert LARGEST_IMAGE == MAX_PIXELS


FLOATS = ("auto", "float32", "bfloat16")
RUNTIMES = ("onnxruntime", "openvino", "tensorrt", "tensorrt-rtx")


@pytest.mark.parametrize(
    ("word", "choices", "near"),
    [
        *(("bf16", FLOATS, "bfloat16"), ("fp32", FLOATS, "float32"), ("f32", FLOATS, "float32")),
        *(("BF16", FLOATS, "bfloat16"), ("single", FLOATS, None), ("fp16", FLOATS, None)),
        *(("float16", get_args(Precision), "fp16"), ("i8", get_args(Precision), "int8")),
        *(("int4", get_args(Precision), "int8"), ("w8a8", get_args(Precision), None)),
        *(("ort", RUNTIMES, "onnxruntime"), ("ov", RUNTIMES, "openvino"), ("OpenVINO", RUNTIMES, "openvino")),
        *(("trt", RUNTIMES, "tensorrt"), ("rtx", RUNTIMES, "tensorrt-rtx"), ("opnvino", RUNTIMES, "openvino")),
        *(("tensortrt", RUNTIMES, "tensorrt"), ("cuda", RUNTIMES, None), ("o", RUNTIMES, None), ("", RUNTIMES, None)),
    ],
)
def test_a_value_is_known_by_its_abbreviation(word: str, choices: tuple[str, ...], near: str | None) -> None:
    assert nearest_choice(word, choices) == near
    hint = of_choices(word, choices)
    assert hint == (f"did you mean {near!r}?" if near else f"known: {', '.join(sorted(choices))}")


def test_a_wrong_choice_is_told_the_nearest_one() -> None:
    with pytest.raises(UsageError, match=r"optimizer\.precision is 'bf16'") as caught:
        validated(DistillConfig, DATA | {"teacher": {"source": "x"}, "optimizer": {"precision": "bf16"}}, "here")
    assert caught.value.hint == "did you mean 'bfloat16'?"
    with pytest.raises(UsageError, match=r"backends\.1 is 'ort'") as caught:
        validated(BenchConfig, {"backends": ["openvino", "ort"]}, "here")
    assert caught.value.hint == "did you mean 'onnxruntime'?"
    with pytest.raises(UsageError, match=r"backends\.0 is 'cuda'") as caught:
        validated(BenchConfig, {"backends": ["cuda"]}, "here")
    assert caught.value.hint.startswith("backends: ")
