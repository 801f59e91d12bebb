"""The canonical form of a tokenizer against `AutoTokenizer` on the same folder: ids and masks, family by family."""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from family_folders import BOS, write_world
from small_tokenizers import CONTEXTS, FAMILIES, captions, clip, gemma, hard_texts, pieces, restated, write_config
from tokenizers import Tokenizer, processors
from transformers import AutoConfig, AutoModel, AutoTokenizer, CLIPConfig, PreTrainedTokenizerFast

from mmcompress.errors import CorruptInputError, MissingRequirementError, UsageError
from mmcompress.export.oddities import odd_texts
from mmcompress.export.texts import save_text_processing, text_processing_of
from mmcompress.runtime.tokenize import attention_mask, load_tokenizer, tokenize


def made(family: str, folder: Path) -> Path:
    if family == "siglip":
        pytest.importorskip("sentencepiece", reason="SigLIP's first tokenizer needs the package sentencepiece")
    return FAMILIES[family](folder)


def test_a_tokenizer_without_a_length_of_its_own_is_read(tmp_path: Path) -> None:
    """transformers writes 10^30, as a float rounds it, for a length that nobody stated."""
    folder = made("chinese clip", tmp_path)
    AutoTokenizer.from_pretrained(folder, model_max_length=int(1e30)).save_pretrained(folder)
    stated = json.loads((folder / "tokenizer_config.json").read_text())
    assert stated["model_max_length"] == 1000000000000000019884624838656
    assert text_processing_of(folder)[1].context == CONTEXTS["chinese clip"]


@pytest.mark.parametrize("family", FAMILIES)
def test_ids_and_masks_are_those_of_transformers(family: str, tmp_path: Path) -> None:
    folder = made(family, tmp_path)
    tokenizer, processing = text_processing_of(folder)
    assert processing.context == CONTEXTS[family]
    texts = hard_texts()
    theirs = AutoTokenizer.from_pretrained(folder)(
        texts, padding="max_length", truncation=True, max_length=processing.context, return_tensors="np"
    )
    ours = tokenize(tokenizer, texts, processing)
    assert len(texts) == 200
    np.testing.assert_array_equal(ours, theirs["input_ids"])
    assert processing.mask == ("attention_mask" in theirs)
    if processing.mask and processing.pad_token_id != processing.eos_token_id:
        np.testing.assert_array_equal(attention_mask(ours, processing), theirs["attention_mask"])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_students_folder_reads_texts_as_its_teachers(family: str, tmp_path: Path) -> None:
    """Through its manifest, through `AutoTokenizer`, and as the folder of another student's tokenizer."""
    folder = made(family, tmp_path)
    student = tmp_path / "student"
    student.mkdir()
    processing = save_text_processing(folder, student)
    (student / "config.json").write_bytes((folder / "config.json").read_bytes())
    texts = hard_texts()
    options = {"padding": "max_length", "truncation": True, "max_length": processing.context}
    expected = AutoTokenizer.from_pretrained(folder)(texts, **options)["input_ids"]
    saved = tokenize(load_tokenizer(student / "tokenizer.json"), texts, processing)
    assert saved.tolist() == expected == AutoTokenizer.from_pretrained(student)(texts, **options)["input_ids"]
    tokenizer, again = text_processing_of(student)
    assert again == processing.model_copy(update={"context": again.context})
    assert tokenize(tokenizer, texts, processing).tolist() == expected


def test_capitals_are_kept_where_the_tokenizer_keeps_them(tmp_path: Path) -> None:
    """transformers 5 names a class for SigLIP 2 that lowers; before it, the same file lowers nothing."""
    texts = ["A Photo of a DOG", "a photo of a dog"]
    (tmp_path / "old").mkdir()
    (tmp_path / "new").mkdir()
    upper, lower = tokenize(*_with_texts(gemma(tmp_path / "old"), texts))
    assert upper.tolist() != lower.tolist()
    both = tokenize(*_with_texts(gemma(tmp_path / "new", "Siglip2Tokenizer"), texts))
    np.testing.assert_array_equal(both, [lower, lower])


def _with_texts(folder: Path, texts: list[str]) -> tuple[Any, list[str], Any]:
    tokenizer, processing = text_processing_of(folder)
    return tokenizer, texts, processing


def test_a_tokenizer_json_that_fills_up_by_itself_is_read_all_the_same(tmp_path: Path) -> None:
    gemma(tmp_path)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    tokenizer.enable_padding(length=64)
    tokenizer.enable_truncation(8)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    _, processing = text_processing_of(tmp_path)
    assert processing.eos_token_id == 1 and processing.context == 64


@pytest.mark.parametrize(
    ("build", "changes", "what", "hint"),
    [
        (clip, {"padding_side": "left"}, "padding_side = 'left', expected 'right'", "tokenizer_config.json"),
        (clip, {"truncation_side": "left"}, "truncation_side = 'left', expected 'right'", "tokenizer_config.json"),
        (gemma, {"model_input_names": None}, "gives an attention mask", '"model_input_names": ["input_ids"]'),
        (gemma, {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": None}, "has no pad_token", "state one"),
    ],
)
def test_what_a_device_does_not_do_is_refused_by_name(
    build: Any, changes: dict[str, Any], what: str, hint: str, tmp_path: Path
) -> None:
    restated(build(tmp_path), **changes)
    with pytest.raises(UsageError) as caught:
        text_processing_of(tmp_path)
    assert what in caught.value.what and hint in caught.value.hint


def test_a_token_that_the_model_has_no_row_for_is_named(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(clip(tmp_path))
    size = len(tokenizer)
    tokenizer.add_tokens(["dogcat"])
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UsageError, match=rf"gives 'dogcat' the id {size}, and its model embeds ids below {size}"):
        text_processing_of(tmp_path)


@pytest.mark.parametrize("family", ["clip", "metaclip_2", "chinese_clip", "altclip"])
def test_a_tokenizer_ends_texts_where_the_model_reads_them(tmp_path: Path, family: str) -> None:
    """transformers' own class reads every text alike where none has its end token: at its first one."""
    write_world(tmp_path, family)
    text_processing_of(tmp_path)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <40>", special_tokens=[("<bos>", BOS), ("<40>", 40)]
    )
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    if family in ("chinese_clip", "altclip"):  # read at the first token
        assert text_processing_of(tmp_path)[1].eos_token_id == 40
        return
    read = AutoConfig.from_pretrained(tmp_path).text_config.eos_token_id
    model, encoded = AutoModel.from_pretrained(tmp_path).eval(), AutoTokenizer.from_pretrained(tmp_path)
    seen = model.get_text_features(**encoded(["red", "a square of blue"], padding=True, return_tensors="pt"))
    assert (seen[0] - seen[1]).abs().max() < 1e-5
    with pytest.raises(UsageError, match=rf"ends texts with id 40, and its model reads them at id {read}"):
        text_processing_of(tmp_path)


def test_the_end_id_2_of_a_clip_means_the_largest_id(tmp_path: Path) -> None:
    stated = json.loads((clip(tmp_path) / "config.json").read_text())
    (tmp_path / "config.json").write_text(
        json.dumps({**stated, "text_config": {**stated["text_config"], "eos_token_id": 2}})
    )
    processing = text_processing_of(tmp_path)[1]
    assert processing.eos_token_id == stated["text_config"]["vocab_size"] - 1


def test_a_text_needs_an_end(tmp_path: Path) -> None:
    gemma(tmp_path, "PreTrainedTokenizerFast")
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UsageError, match="ends texts with no token of its own"):
        text_processing_of(tmp_path)


SHOUTING = """
from transformers import PreTrainedTokenizerFast
class Shouting(PreTrainedTokenizerFast):
    def _batch_encode_plus(self, batch_text_or_text_pairs, *args, **kwargs):
        return super()._batch_encode_plus([text.upper() for text in batch_text_or_text_pairs], *args, **kwargs)
"""


def test_what_a_class_does_in_python_is_found_out(tmp_path: Path) -> None:
    gemma(tmp_path, "Shouting", auto_map={"AutoTokenizer": [None, "tokenization_shouting.Shouting"]})
    (tmp_path / "tokenization_shouting.py").write_text(SHOUTING)
    with pytest.raises(UsageError, match="has code of its own, which does not run unasked") as untrusted:
        text_processing_of(tmp_path)
    assert "teacher.trust_remote_code=true" in untrusted.value.hint
    with pytest.raises(UsageError, match=r"\(Shouting\) reads 'a' as \d+ 1 0 .*, and its tokenizer.json as") as caught:
        text_processing_of(tmp_path, trust_remote_code=True)
    assert "a device has the tokenizer.json alone" in caught.value.hint


def test_folders_without_a_tokenizer_and_with_a_broken_one(tmp_path: Path) -> None:
    CLIPConfig().save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="has no tokenizer") as absent:
        text_processing_of(tmp_path)
    assert "put the model's tokenizer.json" in absent.value.hint
    (tmp_path / "tokenizer.json").write_text("{}")
    write_config(tmp_path, "PreTrainedTokenizerFast")
    with pytest.raises(CorruptInputError, match=r"the tokenizer in .* cannot be opened"):
        text_processing_of(tmp_path)


def test_a_package_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    (tmp_path / "spiece.model").write_bytes(b"")
    write_config(tmp_path, "SiglipTokenizer")
    with pytest.raises(MissingRequirementError, match="needs the Python package 'sentencepiece'") as caught:
        text_processing_of(tmp_path)
    assert caught.value.hint == "pip install 'mmcompress[sentencepiece]'" and caught.value.exit_code == 3


@pytest.mark.parametrize(("name", "file"), [("SiglipTokenizer", "spiece.model"), ("CLIPTokenizer", "tokenizer.json")])
def test_a_missing_vocabulary_is_called_by_its_file(name: str, file: str, tmp_path: Path) -> None:
    write_config(tmp_path, name)
    with pytest.raises(UsageError, match="has no tokenizer") as caught:
        text_processing_of(tmp_path)
    assert f"put the model's {file} and tokenizer_config.json there" in caught.value.hint


def test_a_vocabulary_of_which_transformers_makes_nothing(tmp_path: Path) -> None:
    """AutoTokenizer answers False there, and does not raise."""
    CLIPConfig().save_pretrained(tmp_path)
    (tmp_path / "spiece.model").write_bytes(b"junk")
    write_config(tmp_path, "SiglipTokenizer")
    with pytest.raises((CorruptInputError, MissingRequirementError), match=r"vocabulary|sentencepiece"):
        text_processing_of(tmp_path)


def test_siglip_takes_punctuation_away(tmp_path: Path) -> None:
    pytest.importorskip("sentencepiece", reason="SigLIP's first tokenizer needs the package sentencepiece")
    tokenizer, processing = text_processing_of(pieces(tmp_path))
    rows = tokenize(tokenizer, ["A dog, in -- (the) water!", "a dog in the water"], processing)
    np.testing.assert_array_equal(rows[0], rows[1])


@pytest.mark.filterwarnings("ignore:This sequence already has")
@pytest.mark.parametrize("known", ["<>", ""])
def test_siglip_reads_what_follows_a_special_token_as_its_class_does(known: str, tmp_path: Path) -> None:
    """Where a vocabulary lacks ">", the class loses unknown characters there."""
    pytest.importorskip("sentencepiece", reason="SigLIP's first tokenizer needs the package sentencepiece")
    folder = pieces(tmp_path, known)
    parts = ["</s>", "<unk>", "dog", "😀", "½", "É", " ", "\n", "-", "\x85", "5"]
    texts = ["".join(three) for three in itertools.product(parts, repeat=3)]
    tokenizer, processing = text_processing_of(folder)
    options = {"padding": "max_length", "truncation": True, "max_length": 64}
    expected = AutoTokenizer.from_pretrained(folder)(texts, **options)["input_ids"]
    assert tokenize(tokenizer, texts, processing).tolist() == expected


def test_the_odd_texts_are_about_two_hundred_and_different() -> None:
    texts = odd_texts()
    assert 190 <= len(texts) <= 220 and len(set(texts)) == len(texts)
    assert max(len(text.split()) for text in texts) == 500


def test_saved_without_a_mask_where_there_was_none(tmp_path: Path) -> None:
    (tmp_path / "saved").mkdir()
    processing = save_text_processing(gemma(tmp_path), tmp_path / "saved")
    stated = json.loads((tmp_path / "saved" / "tokenizer_config.json").read_text())
    assert not processing.mask and stated["model_input_names"] == ["input_ids"]
    assert "attention_mask" not in PreTrainedTokenizerFast.from_pretrained(tmp_path / "saved")(captions(2))
