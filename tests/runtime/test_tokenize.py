"""Token ids against transformers' CLIPTokenizer on a small vocabulary of its own."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from mmcompress.errors import CorruptInputError, UsageError
from mmcompress.manifest import TextProcessing
from mmcompress.runtime.tokenize import attention_mask, load_tokenizer, tokenize

TEXTS = ["a cat", "A  CAT, and a hat!", "cat " * 40, "", "ça 猫 🐱 cat's"]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """CLIPTokenizer with byte-level letters and three merges, and the tokenizer.json of its fast twin."""
    from transformers import CLIPTokenizer, CLIPTokenizerFast
    from transformers.models.clip.tokenization_clip import bytes_to_unicode

    folder = tmp_path_factory.mktemp("clip")
    letters = list(bytes_to_unicode().values())
    pieces = [*letters, *(letter + "</w>" for letter in letters), "ca", "cat</w>", "an"]
    vocab = {piece: index for index, piece in enumerate(pieces)}
    vocab |= {"<|startoftext|>": len(vocab), "<|endoftext|>": len(vocab) + 1}
    (folder / "vocab.json").write_text(json.dumps(vocab))
    (folder / "merges.txt").write_text("#version: 0.2\nc a\nca t</w>\na n\n")
    slow = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))
    CLIPTokenizerFast.from_pretrained(folder).save_pretrained(folder)
    return slow, folder / "tokenizer.json"


@pytest.mark.parametrize("context", [8, 77])
def test_tokens_match_cliptokenizer(clip: tuple[Any, Path], context: int) -> None:
    slow, path = clip
    expected = slow(TEXTS, padding="max_length", truncation=True, max_length=context, return_tensors="np")
    processing = TextProcessing(context=context, pad_token_id=slow.pad_token_id, eos_token_id=slow.eos_token_id)
    tokens = tokenize(load_tokenizer(path), TEXTS, processing)
    assert tokens.dtype == np.int32
    np.testing.assert_array_equal(tokens, expected["input_ids"])
    np.testing.assert_array_equal(attention_mask(tokens, processing), expected["attention_mask"])
    assert (tokens == slow.eos_token_id).any(axis=1).all()


def test_padding_lowercase_and_an_empty_list(clip: tuple[Any, Path]) -> None:
    _, path = clip
    tokenizer = load_tokenizer(path)
    tokenizer.normalizer = None  # type: ignore[assignment]
    plain = TextProcessing(context=8, pad_token_id=0, eos_token_id=9)
    lower = plain.model_copy(update={"lowercase": True})
    assert (tokenize(tokenizer, ["a"], plain)[0, 3:] == 0).all()
    np.testing.assert_array_equal(tokenize(tokenizer, ["CAT"], lower), tokenize(tokenizer, ["cat"], plain))
    assert not np.array_equal(tokenize(tokenizer, ["CAT"], plain), tokenize(tokenizer, ["cat"], plain))
    assert tokenize(tokenizer, [], plain).shape == (0, 8)


def test_capitals_are_lowered_one_by_one_as_the_library_does() -> None:
    """Python makes the last sigma of a word another letter, and neither a fast nor a slow tokenizer does."""
    vocab = {letter: index for index, letter in enumerate("οδσς")}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="ς"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    processing = TextProcessing(context=4, pad_token_id=3, eos_token_id=3, lowercase=True)
    assert tokenize(tokenizer, ["ΟΔΟΣ"], processing).tolist() == [[0, 1, 0, 2]]
    tokenizer.normalizer = normalizers.Lowercase()  # type: ignore[assignment]
    plain = processing.model_copy(update={"lowercase": False})
    assert tokenize(tokenizer, ["ΟΔΟΣ"], plain).tolist() == [[0, 1, 0, 2]]


def test_a_prefix_is_set_before_a_text_and_becomes_a_space_inside() -> None:
    tokenizer = Tokenizer(models.WordLevel({"▁": 0, "a": 1, " ": 2, "?": 3}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    processing = TextProcessing(context=4, pad_token_id=3, eos_token_id=3, prefix="▁")
    assert tokenize(tokenizer, ["a▁a", ""], processing).tolist() == [[0, 1, 2, 1], [0, 3, 3, 3]]


@pytest.mark.parametrize(
    ("row", "pad", "mask", "expected"),
    [
        ([1, 5, 2, 0, 0], 0, True, [1, 1, 1, 0, 0]),
        ([1, 2, 5, 2, 0], 0, True, [1, 1, 1, 1, 0]),
        ([1, 0, 5, 0, 2], 0, True, [1, 1, 1, 1, 1]),
        ([1, 5, 2, 2, 2], 2, True, [1, 1, 1, 0, 0]),
        ([1, 2, 5, 2, 2], 2, True, [1, 1, 1, 1, 0]),
        ([2, 2, 2, 2, 2], 2, True, [1, 0, 0, 0, 0]),
        ([1, 5, 2, 0, 0], 0, False, [1, 1, 1, 1, 1]),
    ],
)
def test_a_mask_ends_with_the_text(row: list[int], pad: int, mask: bool, expected: list[int]) -> None:
    """Also where a caption spells the end token, or the one that fills up."""
    processing = TextProcessing(context=5, pad_token_id=pad, eos_token_id=2, mask=mask)
    assert attention_mask(np.array([row]), processing).tolist() == [expected]


def test_a_broken_and_an_absent_file_are_named(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(CorruptInputError, match=r"tokenizer.json is no tokenizer.json") as corrupt:
        load_tokenizer(tmp_path / "tokenizer.json")
    assert corrupt.value.exit_code == 4
    with pytest.raises(UsageError, match="there is no tokenizer") as absent:
        load_tokenizer(tmp_path / "absent.json")
    assert absent.value.exit_code == 2


def test_threads_may_share_a_tokenizer(clip: tuple[Any, Path]) -> None:
    """The library raises "Already borrowed" for one that is set up while another thread uses it."""
    tokenizer = load_tokenizer(clip[1])
    processing = TextProcessing(context=77, eos_token_id=516, pad_token_id=516)
    expected = tokenize(tokenizer, TEXTS * 20, processing)
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: tokenize(tokenizer, TEXTS * 20, processing), range(200)):
            np.testing.assert_array_equal(found, expected)
