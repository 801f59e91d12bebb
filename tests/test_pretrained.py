"""Weights that do not belong to their config are an error, whatever transformers makes of them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from clip_world import write_teacher
from family_folders import write_world
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPModel

from mmcompress.config import TeacherConfig
from mmcompress.errors import CorruptInputError, MissingRequirementError, MMCompressError, UsageError
from mmcompress.foreign import said
from mmcompress.manifest import Preprocessing
from mmcompress.pipeline import standalone
from mmcompress.pipeline.converted import graphs_to_use, teacher_named
from mmcompress.pretrained import check_folder, load_model
from mmcompress.teachers import resolve
from mmcompress.weights import read_weights

Change = Callable[[dict[str, Tensor]], dict[str, Tensor]]


def changed(folder: Path, change: Change) -> Path:
    write_teacher(folder)
    save_file(change(load_file(folder / "model.safetensors")), folder / "model.safetensors", {"format": "pt"})
    return folder


def configured(folder: Path, **keys: object) -> Path:
    write_teacher(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **keys}))
    return folder


def test_a_whole_folder_is_loaded_as_transformers_does(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = changed(tmp_path, lambda t: {**t, "vision_model.embeddings.position_ids": torch.arange(17)[None]})
    model, theirs = load_model(folder), CLIPModel.from_pretrained(folder)
    assert not model.training and capfd.readouterr().err == ""
    for (name, ours), expected in zip(model.state_dict().items(), theirs.state_dict().values(), strict=True):
        assert torch.equal(ours, expected), name


@pytest.mark.parametrize(
    ("change", "what", "hint"),
    [
        (
            lambda t: {f"model.{k}": v for k, v in t.items()},
            "tensors are missing, the first is 'logit_scale'",
            "'model.'",
        ),
        (
            lambda t: {k: v for k, v in t.items() if k != "text_projection.weight"},
            "1 tensors are missing, the first is 'text_projection.weight'",
            "restore",
        ),
        (lambda t: {**t, "head.bias": torch.zeros(3)}, "1 tensors belong to nothing in the model", "restore"),
        (
            lambda t: {**t, "visual_projection.weight": torch.zeros(8, 64)},
            "the first is 'visual_projection.weight', expected (32, 64)",
            "restore",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_named(tmp_path: Path, change: Change, what: str, hint: str) -> None:
    with pytest.raises(CorruptInputError) as caught:
        load_model(changed(tmp_path, change))
    assert what in caught.value.what and hint in caught.value.hint


def test_a_prefix_within_the_family_of_names_is_no_prefix(tmp_path: Path) -> None:
    with pytest.raises(CorruptInputError, match="1 tensors are missing") as caught:
        load_model(changed(tmp_path, lambda t: {k: v for k, v in t.items() if k != "logit_scale"}))
    assert "starts with" not in caught.value.hint


def test_damaged_and_absent_files(tmp_path: Path) -> None:
    folder = write_teacher(tmp_path)
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(CorruptInputError, match="cannot be opened"):
        load_model(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(CorruptInputError, match=r"has no weights of a name that is read$"):
        load_model(folder)
    (folder / "model.fp16.safetensors").write_bytes(weights)
    with pytest.raises(CorruptInputError, match=r"is read, but model\.fp16\.safetensors") as caught:
        load_model(folder)
    assert "rename a variant" in caught.value.hint
    (folder / "config.json").write_text("{")
    with pytest.raises(CorruptInputError, match="is no JSON"):
        load_model(folder)


@pytest.mark.parametrize(
    ("keys", "kind", "what"),
    [
        ({"model_type": "siglip2"}, UsageError, "NaFlex"),
        ({"model_type": "unheard_of"}, UsageError, "does not know the model_type 'unheard_of'"),
        ({"model_type": None, "auto_map": {}}, UsageError, "Python code of its own"),
        ({"auto_map": {"AutoModel": "mod.M"}}, UsageError, "Python code of its own"),
        ({"model_type": "bert"}, MMCompressError, "missing"),
    ],
)
def test_models_that_are_no_teacher(tmp_path: Path, keys: dict[str, object], kind: type, what: str) -> None:
    with pytest.raises(kind, match=what) as caught:
        load_model(configured(tmp_path, **keys))
    if "auto_map" in keys:
        assert "mmcompress export TEACHER --set teacher.trust_remote_code=true" in caught.value.hint


@pytest.mark.parametrize("family", ["clip", "metaclip_2", "chinese_clip"])
def test_no_end_token_is_refused_where_a_text_is_read_at_it(tmp_path: Path, family: str) -> None:
    """The stock class fails there with an AttributeError of a bool; Chinese-CLIP reads the first token."""
    write_world(tmp_path, family)
    stated = json.loads((tmp_path / "config.json").read_text())
    stated["text_config"]["eos_token_id"] = None
    (tmp_path / "config.json").write_text(json.dumps(stated))
    if family == "chinese_clip":
        check_folder(tmp_path)
        return
    with pytest.raises(UsageError, match=rf"eos_token_id = null in text_config, and a {family} model reads") as caught:
        check_folder(tmp_path)
    assert "the tokenizer's end token" in caught.value.hint
    del stated["text_config"]["eos_token_id"]
    (tmp_path / "config.json").write_text(json.dumps(stated))
    check_folder(tmp_path)


CLIP_OF_ST = {"idx": 0, "name": "0", "path": "0_CLIPModel", "type": "sentence_transformers.models.CLIPModel"}
DENSE = {"idx": 1, "name": "1", "path": "1_Dense", "type": "sentence_transformers.models.Dense"}
NORMALIZE = {"idx": 1, "name": "1", "path": "1_Normalize", "type": "sentence_transformers.models.Normalize"}
ADAPTER = {"peft_type": "LORA", "base_model_name_or_path": "openai/clip-vit-base-patch32"}


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize(
    ("file", "content", "what"),
    [
        ("adapter_config.json", ADAPTER, r"holds an adapter \(adapter_config.json, of openai/clip-vit-base-patch32\)"),
        ("adapter_model.safetensors", {}, r"holds an adapter \(adapter_model.safetensors\)"),
        ("modules.json", [{**CLIP_OF_ST, "path": ""}, DENSE], "sentence-transformers with a Dense behind it"),
        ("modules.json", [CLIP_OF_ST, {"type": "sentence_transformers.models.Pooling"}], "with a Pooling behind it"),
    ],
)
def test_what_is_more_than_its_model_is_refused_by_every_entry(
    tmp_path: Path, file: str, content: object, what: str, alone: bool
) -> None:
    folder = tmp_path / "m"
    folder.mkdir() if alone else write_teacher(folder)
    (folder / file).write_text(json.dumps(content))
    entries: list[Callable[[], object]] = [
        lambda: resolve(TeacherConfig(source=str(folder))),
        lambda: teacher_named(str(folder)),
        lambda: load_model(folder),
        lambda: standalone.quantize(folder, tmp_path / "q", {"data.train": "demo:train"}),
        lambda: standalone.drift([folder], tmp_path / "d", {"data.test": "demo:test"}),
        lambda: standalone.distill(
            tmp_path / "s",
            {"teacher.source": str(folder), "student.source": "vit-t16", "data.train": "demo:train"},
        ),
        lambda: graphs_to_use(folder),
    ]
    for enter in entries:
        with pytest.raises(UsageError, match=what) as caught:
            enter()
        assert "merge_and_unload" in caught.value.hint or "file.py:function" in caught.value.hint
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_a_folder_of_sentence_transformers_names_its_model(tmp_path: Path) -> None:
    write_teacher(tmp_path / "0_CLIPModel")
    (tmp_path / "modules.json").write_text(json.dumps([CLIP_OF_ST, NORMALIZE]))
    with pytest.raises(UsageError, match="its model is in 0_CLIPModel") as caught:
        resolve(TeacherConfig(source=str(tmp_path)))
    assert str(tmp_path / "0_CLIPModel") in caught.value.hint
    write_teacher(tmp_path)
    (tmp_path / "modules.json").write_text(json.dumps([{**CLIP_OF_ST, "path": ""}, NORMALIZE]))
    load_model(tmp_path)


@pytest.mark.parametrize("part", [None, "vision_config", "text_config"])
def test_quantized_weights_are_refused_with_the_method(tmp_path: Path, part: str | None) -> None:
    stated = {"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}}
    folder = configured(tmp_path, **(stated if part is None else {part: stated}))
    with pytest.raises(UsageError, match=r"are quantized by bitsandbytes \(quantization_config") as caught:
        load_model(folder)
    assert "in float" in caught.value.hint


def test_code_of_the_folder_runs_where_it_is_trusted(tmp_path: Path) -> None:
    auto = {"AutoConfig": "conf.C", "AutoModel": "mod.M"}
    folder = configured(tmp_path, auto_map=auto, model_type="own_clip")
    (folder / "conf.py").write_text(
        "from transformers import CLIPConfig\nclass C(CLIPConfig):\n    model_type='own_clip'\n"
    )
    own = "from transformers import CLIPModel\nfrom .conf import C\nclass M(CLIPModel):\n    config_class = C\n"
    (folder / "mod.py").write_text(own)
    assert type(load_model(folder, trust_remote_code=True)).__name__ == "M"
    (folder / "mod.py").write_text("import a_package_that_is_nowhere\n" + own)
    with pytest.raises(MissingRequirementError, match="a_package_that_is_nowhere"):
        load_model(folder, trust_remote_code=True)


def test_an_old_transformers_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.__version__", "4.50.3")
    with pytest.raises(MissingRequirementError, match=r"transformers 4\.50\.3 is too old, expected 4\.56"):
        check_folder(write_teacher(tmp_path))


def test_what_an_exception_says_goes_on_behind_a_colon() -> None:
    assert (
        said(RuntimeError("Error(s) for Linear:\n\n  size mismatch\n  more"))
        == "RuntimeError: Error(s) for Linear: size mismatch"
    )
    assert said(ValueError("one\ntwo")) == "ValueError: one" and said(KeyError()) == "KeyError: "


@pytest.mark.parametrize(
    ("wrong", "what"),
    [
        ({"size": -4}, "size is -4: Input should be greater than or equal to 1"),
        ({"resize": 0}, "resize is 0: Input should be greater than or equal to 1"),
        ({"size": 100_000}, "size is 100000: Input should be less than or equal to 4096"),
        ({"std": (0.5, 0, 0.5)}, "std.1 is 0: nothing can be divided by 0"),
    ],
)
def test_a_preprocessing_that_prepares_nothing_is_told_by_its_value(wrong: dict[str, object], what: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Preprocessing.model_validate({"size": 8, "resize": 8, "mean": (0.5,) * 3, "std": (0.5,) * 3, **wrong})
    assert said(caught.value) == f"ValidationError: Preprocessing: {what}"


def test_a_folder_whose_name_is_no_utf8_is_not_called_damaged(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").rename(folder / "model.safetensors")
    with pytest.raises(UsageError, match="has a name that is no UTF-8"):
        read_weights(folder / "model.safetensors")
