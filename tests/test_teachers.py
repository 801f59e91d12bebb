"""Which files of a hub repository are fetched, and when its code is. The hub is a stand-in: there is none here."""

from __future__ import annotations

import fnmatch
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mmcompress.config import TeacherConfig
from mmcompress.errors import UsageError
from mmcompress.teachers import cached_folder, hub_patterns, open_clip_weights, own_code, resolve

COMMON = ["config.json", "preprocessor_config.json", "tokenizer_config.json", "README.md", "modeling_own.py"]
SHARDS = ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin", "pytorch_model.bin.index.json"]
SAFE_SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"]


def fetched(names: list[str], trusted: bool = False) -> set[str]:
    patterns = hub_patterns(names, trusted)
    return {name for name in names if any(fnmatch.fnmatch(name, pattern) for pattern in patterns)}


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        (["model.safetensors", "pytorch_model.bin", "flax_model.msgpack"], {"model.safetensors"}),
        (SHARDS, {*SHARDS}),
        ([*SAFE_SHARDS, *SHARDS], {*SAFE_SHARDS, SHARDS[-1]}),
        (["pytorch_model.bin", "adapter_model.safetensors"], {"pytorch_model.bin"}),
        (["pytorch_model.bin", "onnx/model.safetensors", "onnx/model.onnx"], {"pytorch_model.bin"}),
        (["model.safetensors", "spiece.model", "vocab.txt", "merges.txt"], None),
        (["model.safetensors", "sentencepiece.bpe.model", "vocab.json", "cl100k.tiktoken"], None),
    ],
)
def test_one_set_of_weights_and_every_tokenizer(names: list[str], wanted: set[str] | None) -> None:
    configs = {"config.json", "preprocessor_config.json", "tokenizer_config.json"}
    assert fetched([*COMMON, *names]) == configs | (set(names) if wanted is None else wanted)


def test_code_is_fetched_where_it_may_run() -> None:
    assert "modeling_own.py" not in fetched([*COMMON, "model.safetensors"])
    assert "modeling_own.py" in fetched([*COMMON, "model.safetensors"], trusted=True)


@pytest.mark.parametrize("trusted", [False, True])
def test_what_is_trusted_reaches_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trusted: bool) -> None:
    asked: list[list[str]] = []

    def snapshot_download(hub_id: str, allow_patterns: list[str]) -> str:
        assert hub_id == "openai/clip-vit-base-patch32"
        asked.append(allow_patterns)
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.list_repo_files", lambda _: [*COMMON, "pytorch_model.bin"])
    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    assert resolve(TeacherConfig(source="vit-b32", trust_remote_code=trusted)) == tmp_path
    assert ("*.py" in asked[0]) == trusted and "pytorch_model.bin" in asked[0]


@pytest.mark.parametrize("source", ["own.py", "own.py:", "models/own.py", "~/own.py"])
def test_a_file_without_a_function_is_told_the_form(
    cli: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    """Of which `models/own.py` could be a hub id, and is not asked for."""
    monkeypatch.chdir(tmp_path)
    Path("own.py").write_text("def function(): ...\n")
    monkeypatch.setattr("huggingface_hub.list_repo_files", lambda _: pytest.fail("the hub was asked"))
    commands = (
        ("embed", "--teacher", source),
        ("quantize", source),
        ("shrink", source),
        ("distill", "--teacher", source),
    )
    student = ("--student", "vit-s16")
    for command in commands:
        done = cli(*command, "--data", "demo:val", "--out", "out", *(student if command[0] == "distill" else ()))
        assert (done.code, len(list(tmp_path.iterdir()))) == (2, 1), done.err
        assert "is a Python file, and no function in it is named" in done.err
        assert f"hint: name it: {source.removesuffix(':')}:function" in done.err


def test_kinds_of_names() -> None:
    assert own_code("a/b.py:f") == (Path("a/b.py"), "f") and own_code("open_clip:a/b") is None
    assert open_clip_weights("ViT-B-32/openai") is None and open_clip_weights("hf-hub:a/b") is None
    assert open_clip_weights("ViT-B-32//a/b.pt") == Path("/a/b.pt")
    assert open_clip_weights("local-dir:a") == Path("a")
    assert cached_folder("./nowhere") is None and cached_folder("demo:teacher") is None


def test_a_hub_that_cannot_be_reached_is_said_in_a_fresh_process(tmp_path: Path) -> None:
    """Before anything else has imported the parts of huggingface_hub, which it loads only when asked."""
    code = (
        "from mmcompress.config import TeacherConfig\n"
        "from mmcompress.errors import MissingRequirementError\n"
        "from mmcompress.teachers import resolve\n"
        "try: resolve(TeacherConfig(source='nobody/nothing'))\n"
        "except MissingRequirementError as error: print(error)"
    )
    offline = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=offline, capture_output=True, text=True)
    assert "nobody/nothing" in done.stdout, done.stderr


@pytest.mark.parametrize("source", ["", "  "])
def test_an_empty_name_is_not_the_folder_one_stands_in(source: str) -> None:
    with pytest.raises(UsageError, match="the name of the teacher is empty"):
        resolve(TeacherConfig(source=source))


def test_what_transformers_cannot_open_is_no_published_start_and_called_what_it_is(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(UsageError, match=r"is an artifact of mmcompress that has no config\.json"):
        resolve(TeacherConfig(source=str(tmp_path)), "student")
