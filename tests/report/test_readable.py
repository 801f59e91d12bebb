"""What a page refuses before it is made: tokenizers that JavaScript reads otherwise, graphs, other bytes than npm's."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import small_tokenizers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from toy_artifact import MakeArtifact

from mmcompress.artifact import Artifact
from mmcompress.errors import CorruptInputError, MissingRequirementError, UsageError
from mmcompress.export.folders import tokenizer_of
from mmcompress.manifest import Kind
from mmcompress.report.page import npm
from mmcompress.report.page.readable import ends, readable


def words(**parts: Any) -> Tokenizer:
    tokenizer = Tokenizer(parts.pop("model", models.BPE()))
    for name, value in parts.items():
        setattr(tokenizer, name, value)
    return tokenizer


@pytest.mark.parametrize(
    "tokenizer, named",
    [
        (words(model=models.WordLevel({"a": 0}, unk_token="a")), "the model WordLevel"),
        (words(model=models.BPE(byte_fallback=True)), "the model BPE with byte_fallback True"),
        (words(normalizer=normalizers.StripAccents()), "the normalizer StripAccents"),
        (words(normalizer=normalizers.Sequence([normalizers.NFC(), normalizers.Nmt()])), "the normalizer Nmt"),
        (words(normalizer=normalizers.Replace(" ", "▁")), "the normalizer Replace with pattern"),
        (
            words(pre_tokenizer=pre_tokenizers.Split("▁", "merged_with_previous")),
            "the pre-tokenizer Split with pattern",
        ),
        (words(pre_tokenizer=pre_tokenizers.ByteLevel(use_regex=False)), "the pre-tokenizer ByteLevel with use_regex"),
    ],
)
def test_a_rule_that_javascript_reads_otherwise_is_named(tokenizer: Tokenizer, named: str) -> None:
    with pytest.raises(UsageError, match="is not read in a browser as it is in Python") as refused:
        readable(tokenizer, "model/tokenizer.json")
    assert refused.value.what.startswith(f"model/tokenizer.json has {named}")


def test_gemma_is_refused_and_the_others_pass(tmp_path: Path) -> None:
    for name in ("clip", "chinese clip", "altclip", "siglip 2"):
        (tmp_path / name).mkdir()
        tokenizer = tokenizer_of(small_tokenizers.FAMILIES[name](tmp_path / name)).backend_tokenizer
        if name == "siglip 2":
            with pytest.raises(UsageError, match=r"Split|Replace|byte_fallback"):
                readable(tokenizer, name)
        else:
            assert readable(tokenizer, name)["post_processor"] is None


def test_ends_are_what_the_template_adds() -> None:
    tokenizer = words(model=models.BPE({"a": 0, "<s>": 1, "</s>": 2, "<x>": 3}, []))
    assert ends(tokenizer, "t") == ((), ())
    known = [("<s>", 1), ("</s>", 2), ("<x>", 3)]
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> <x> $A </s>", special_tokens=known)
    assert ends(tokenizer, "t") == ((1, 3), (2,))
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A <x> $A </s>", special_tokens=known)
    with pytest.raises(UsageError, match="more around a text than ids before and after it"):
        ends(tokenizer, "t")


def test_models_that_no_page_runs_are_refused(
    make_artifact: MakeArtifact, cli: Callable[..., Any], tmp_path: Path
) -> None:
    """Before anything is fetched: the toy's tokenizer is of whole words, and it has no scale the second time."""
    artifact = make_artifact()
    done = cli("page", artifact.path, "--out", tmp_path / "site")
    assert done.code == 2 and "tokenizer.json has the pre-tokenizer Whitespace, which is not read" in done.err
    done = cli("page", make_artifact("mute", facts={"logit_scale": None}).path, "--out", tmp_path / "site")
    assert done.code == 2 and "does not state the model's logit scale" in done.err
    done = cli("page", make_artifact("engine", kind=Kind.ENGINE).path, "--out", tmp_path / "site")
    assert done.code == 2 and "runs no artifact of kind 'engine'" in done.err
    done = cli("page", artifact.path, "--out", artifact.path, "--data", "demo:test")
    assert done.code == 2
    done = cli("page", artifact.path, "--out", tmp_path / "site", "--data", "nowhere")
    assert done.code == 2 and "nowhere" in done.err
    assert not (tmp_path / "site").exists() and Artifact.open(artifact.path)


def test_other_bytes_than_npm_published_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMCOMPRESS_CACHE", str(tmp_path))
    monkeypatch.setattr(npm, "_fetched", lambda *_: b"something else")
    with pytest.raises(CorruptInputError, match=r"is not onnxruntime-web 1\.30\.0: its hash is sha512-"):
        npm.archive_of(npm.ONNXRUNTIME)
    assert list(tmp_path.rglob("*.tgz")) == []
    place = tmp_path / "npm" / npm.TOKENIZERS.archive
    place.parent.mkdir()
    place.write_bytes(b"damaged")
    with pytest.raises(CorruptInputError, match=f"{place} is not @huggingface/tokenizers") as refused:
        npm.vendored(npm.TOKENIZERS)
    assert refused.value.hint == f"delete {place}; it is fetched again"


def test_a_registry_that_does_not_answer_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMCOMPRESS_CACHE", str(tmp_path))
    monkeypatch.setenv(npm.REGISTRY, "http://127.0.0.1:9/")
    with pytest.raises(MissingRequirementError, match="cannot be fetched") as refused:
        npm.archive_of(npm.TOKENIZERS)
    assert str(tmp_path / "npm") in refused.value.hint and npm.REGISTRY in refused.value.hint
    monkeypatch.setenv(npm.REGISTRY, "file:///etc/")
    with pytest.raises(UsageError, match="is no address of a registry"):
        npm.archive_of(npm.TOKENIZERS)


def test_json_is_finite_and_says_how_it_is_served(tmp_path: Path) -> None:
    from test_page import artifact_at

    from mmcompress.cli.show_use import page_summary

    made = artifact_at(tmp_path / "my site", 0)
    made.manifest.facts["bytes"] = 9_700_000
    document, view = page_summary(made)
    assert "--directory '" in json.loads(json.dumps(document))["serve"] and "9.7 MB" in str(view)
