"""Weights of every family as they lie on disk: float types, shards, torch's own files, and broken ones."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from family_folders import (
    FAMILIES,
    embedded,
    pixels,
    stock_images,
    stock_model,
    stock_texts,
    tokens,
    write_family,
)
from safetensors.torch import load_file as load_tensors
from safetensors.torch import save_file

from mmcompress.errors import CorruptInputError, MMCompressError, UsageError
from mmcompress.families import CLASSES
from mmcompress.huggingface import dual_encoder_from_hugging_face
from mmcompress.weights import check_finite


@pytest.mark.parametrize("family", FAMILIES)
def test_float_types_and_shards_load_and_a_broken_tensor_is_named(family: str, tmp_path: Path) -> None:
    stock = stock_model(family)
    images, ids = pixels(32), tokens(family)
    wanted = stock_images(stock, images), stock_texts(stock, ids)
    for dtype, limit in ((torch.float16, 1e-2), (torch.bfloat16, 8e-2)):
        stock.to(dtype).save_pretrained(tmp_path / str(dtype), max_shard_size="100KB")
        assert len(list((tmp_path / str(dtype)).glob("*.safetensors"))) > 1
        found = embedded(dual_encoder_from_hugging_face(tmp_path / str(dtype)), images, ids)
        assert max(np.abs(f - w).max() for f, w in zip(found, wanted, strict=True)) < limit
        stock.float()

    stock.save_pretrained(tmp_path)
    tensors = load_tensors(tmp_path / "model.safetensors")
    for name in sorted(tensors)[:: max(1, len(tensors) // 7)]:
        save_file({k: v for k, v in tensors.items() if k != name}, tmp_path / "model.safetensors")
        with pytest.raises(CorruptInputError, match=f"tensor '{name}' is missing"):
            dual_encoder_from_hugging_face(tmp_path)
        save_file({**tensors, name: torch.zeros(3, 2, 5)}, tmp_path / "model.safetensors")
        with pytest.raises(CorruptInputError, match=rf"tensor '{name}' has shape \(3, 2, 5\), expected"):
            dual_encoder_from_hugging_face(tmp_path)
    save_file({**tensors, "stranger": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(CorruptInputError, match="unexpected tensor 'stranger'"):
        dual_encoder_from_hugging_face(tmp_path)


@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize("family", FAMILIES)
def test_torchs_own_files_are_read_as_transformers_reads_them(family: str, shards: int, tmp_path: Path) -> None:
    stock = write_family(tmp_path, family)
    (tmp_path / "model.safetensors").unlink()
    pickled(stock.state_dict(), tmp_path, shards)
    images, ids = pixels(32), tokens(family)
    found = embedded(dual_encoder_from_hugging_face(tmp_path), images, ids)
    theirs = getattr(transformers, f"{CLASSES[family]}Model").from_pretrained(tmp_path).eval()
    np.testing.assert_allclose(found[0], stock_images(theirs, images), atol=1e-5)
    np.testing.assert_allclose(found[1], stock_texts(theirs, ids), atol=1e-5)


def pickled(state: dict[str, Any], folder: Path, shards: int = 1) -> None:
    """Weights as torch saves them: one file, or shards and their index."""
    if shards == 1:
        torch.save(state, folder / "pytorch_model.bin")
        return
    names = {name: f"pytorch_model-{i % shards + 1:05d}-of-{shards:05d}.bin" for i, name in enumerate(state)}
    for file in set(names.values()):
        torch.save({name: state[name] for name in state if names[name] == file}, folder / file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))


def test_of_several_weights_those_are_read_that_transformers_reads(tmp_path: Path) -> None:
    write_family(tmp_path, "clip")
    other = stock_model("clip", seed=1)
    pickled(other.state_dict(), tmp_path)
    (tmp_path / "shards").mkdir()
    other.save_pretrained(tmp_path / "shards", max_shard_size="100KB")
    for file in (tmp_path / "shards").glob("model*"):
        file.rename(tmp_path / file.name)
    theirs = transformers.CLIPModel.from_pretrained(tmp_path).eval()
    ours = dual_encoder_from_hugging_face(tmp_path).encode_image(pixels(32)).detach().numpy()
    np.testing.assert_allclose(ours, stock_images(theirs, pixels(32)), atol=1e-5)


class Code:
    """What a pickle can hold besides tensors."""


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("damaged", "pytorch_model.bin is damaged"),
        ("code", "pytorch_model.bin is damaged"),
        ("shard", "has no pytorch_model-00002-of-00002.bin, which pytorch_model.bin.index.json lists"),
        ("index", "pytorch_model.bin.index.json lists no shards"),
    ],
)
def test_broken_files_of_torch_are_refused_by_name(name: str, what: str, tmp_path: Path) -> None:
    state = write_family(tmp_path, "clip").state_dict()
    (tmp_path / "model.safetensors").unlink()
    pickled({**state, "code": Code()} if name == "code" else state, tmp_path, 1 if name in ("damaged", "code") else 2)
    if name == "damaged":
        (tmp_path / "pytorch_model.bin").write_bytes(b"PK\x03\x04 and no more")
    elif name == "shard":
        (tmp_path / "pytorch_model-00002-of-00002.bin").unlink()
    elif name == "index":
        (tmp_path / "pytorch_model.bin.index.json").write_text("[]")
    with pytest.raises(MMCompressError, match=what) as caught:
        dual_encoder_from_hugging_face(tmp_path)
    assert caught.value.hint


PACKED = {"float8_e4m3fn": True, "float8_e5m2": True, "int8": True, "bool": False}


@pytest.mark.parametrize(("dtype", "packed"), PACKED.items())
@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_weights_of_8_bits_are_refused_by_name(dtype: str, packed: bool, suffix: str, tmp_path: Path) -> None:
    tensors = {"a.bias": torch.ones(4), "a.weight": torch.ones(4, 4).to(getattr(torch, dtype))}
    path = tmp_path / f"model{suffix}"
    if suffix == ".safetensors":
        save_file(tensors, path)
    else:
        torch.save(tensors, path)
    if not packed:
        check_finite(path)
        return
    with pytest.raises(UsageError, match=rf"tensor 'a\.weight' \({dtype}\) has 8 bits a number") as refused:
        check_finite(path)
    assert "float16 that it was made from" in refused.value.hint


def test_a_teacher_folder_in_float8_is_refused_before_it_is_loaded(
    tiny_clip_folder: Path, tmp_path: Path, cli: Callable[..., Any]
) -> None:
    folder = tmp_path / "f8"
    shutil.copytree(tiny_clip_folder, folder)
    weights = folder / "model.safetensors"
    tensors = {n: t.to(torch.float8_e4m3fn) if t.ndim == 2 else t for n, t in load_tensors(weights).items()}
    save_file(tensors, weights, metadata={"format": "pt"})
    data = ("--data", "demo:val")
    for words in (("export", folder), ("quantize", folder, *data), ("embed", "--teacher", folder, *data)):
        done = cli(*words, "--out", tmp_path / "out")
        assert done.code == 2 and "(float8_e4m3fn) has 8 bits a number" in done.err, done.err
        assert not (tmp_path / "out").exists()
