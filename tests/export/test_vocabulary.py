"""Smaller vocabularies of every kind of tokenizer: their texts are read as before, and any text still is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import small_tokenizers
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from mmcompress.artifact import Artifact
from mmcompress.config import ExportConfig
from mmcompress.errors import UsageError
from mmcompress.export.texts import text_processing_of
from mmcompress.export.vocabulary import (
    ids_of_languages,
    ids_of_texts,
    languages_in,
    read_otherwise,
    trimmed,
    vocabulary_of_texts,
)
from mmcompress.manifest import TextProcessing
from mmcompress.packaged import packaged
from mmcompress.pipeline.run import run_stage
from mmcompress.runtime.encoder import Encoder
from mmcompress.runtime.tokenize import load_tokenizer, tokenize
from mmcompress.runtime.trimmed import warn_of_lost_letters
from mmcompress.stages import STAGES

CORPUS = ["a dog on the beach", "two red cats, and 3 dogs!", "The child's ball 猫"]


def demo() -> tuple[Tokenizer, TextProcessing]:
    return load_tokenizer(packaged("demo:teacher") / "tokenizer.json"), TextProcessing(
        context=32, pad_token_id=1, eos_token_id=1
    )


def unigram() -> tuple[Tokenizer, TextProcessing]:
    letters = [*"abcdefghijklmnopqrstuvwxyz▁", "猫"]
    pieces = [
        ("<unk>", 0.0),
        ("</s>", 0.0),
        ("▁dog", -2.0),
        ("▁a", -2.5),
        ("▁the", -2.2),
        ("▁beach", -4.0),
        ("each", -5.0),
        ("▁zebra", -6.0),
    ]
    tokenizer = Tokenizer(models.Unigram([*pieces, *((letter, -9.0) for letter in letters), ("▁on", -3.0)], 0, False))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.add_special_tokens(["</s>"])
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return tokenizer, TextProcessing(context=32, pad_token_id=1, eos_token_id=1)


def wordpiece() -> tuple[Tokenizer, TextProcessing]:
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "a",
        "dog",
        "##s",
        "on",
        "the",
        "beach",
        "be",
        "##ach",
        "two",
        "c",
        "##at",
    ]
    tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return tokenizer, TextProcessing(context=32, pad_token_id=0, eos_token_id=3)


def family(name: str) -> Callable[[Path], tuple[Tokenizer, TextProcessing]]:
    return lambda folder: text_processing_of(getattr(small_tokenizers, name)(folder))


KINDS: dict[str, Callable[[Path], tuple[Tokenizer, TextProcessing]]] = {
    "byte-level BPE": lambda _: demo(),
    "CLIP's BPE": family("clip"),
    "BPE with bytes to fall back to": family("gemma"),
    "unigram": lambda _: unigram(),
    "word pieces": lambda _: wordpiece(),
}


@pytest.mark.parametrize("kind", KINDS)
def test_its_texts_are_read_as_before_and_any_text_still_is(kind: str, tmp_path: Path) -> None:
    tokenizer, processing = KINDS[kind](tmp_path)
    corpus = [*CORPUS, *small_tokenizers.captions(20)]
    made, _ = vocabulary_of_texts(tokenizer, corpus, processing, (processing.pad_token_id, processing.eos_token_id))
    assert len(made.kept) < tokenizer.get_vocab_size() and made.tokenizer.get_vocab_size() == len(made.kept)
    own = made.processing(processing)
    np.testing.assert_array_equal(
        made.kept[tokenize(made.tokenizer, corpus, own)], tokenize(tokenizer, corpus, processing)
    )
    unknown = tokenizer.token_to_id("<unk>"), tokenizer.token_to_id("[UNK]")
    before = tokenize(tokenizer, (hard := small_tokenizers.hard_texts()), processing)
    after = made.kept[tokenize(made.tokenizer, hard, own)]
    for id in (id for id in unknown if id is not None):
        known = ~(before == id).any(axis=1)
        assert not (after[known] == id).any(), "what could be spelled still can"
    assert (after == processing.eos_token_id).any(axis=1).all()


def test_what_it_was_not_made_from_is_read_in_smaller_pieces() -> None:
    tokenizer, processing = demo()
    made = trimmed(tokenizer, ids_of_texts(tokenizer, ["a dog"], processing))
    texts = ["a dog", "dog a", "a red elephant"]
    assert read_otherwise(tokenizer, texts, processing, made) == ["a red elephant"]
    for each in (tokenizer, made.tokenizer):
        each.no_padding()
    elephant = made.tokenizer.encode("a red elephant").ids
    assert made.tokenizer.decode(elephant).strip() == "a red elephant"
    assert len(elephant) > len(tokenizer.encode("a red elephant").ids)


def test_a_held_out_tenth_says_what_is_lost() -> None:
    tokenizer, processing = demo()
    same = [f"a dog and {number} cats" for number in (1, 2)] * 20
    assert vocabulary_of_texts(tokenizer, same, processing, ())[1] is None, "only two are different"
    known = tokenizer.get_vocab()  # in another order each time
    words = [token.removeprefix("Ġ") for token in sorted(known, key=known.__getitem__)[600:1000] if token.isascii()]
    _, share = vocabulary_of_texts(tokenizer, ["dog", *words], processing, ())
    assert share is not None and share > 0.5, "every word is another one"


def test_languages_keep_the_tokens_of_their_scripts() -> None:
    tokenizer, processing = demo()
    english = trimmed(tokenizer, ids_of_languages(tokenizer, ("en",)))
    both = trimmed(tokenizer, ids_of_languages(tokenizer, ("en", "zh")))
    assert len(english.kept) < len(both.kept) <= tokenizer.get_vocab_size()
    texts = ["a red dog, 3 cats!", "一只红色的狗"]
    assert read_otherwise(tokenizer, texts, processing, english) == texts[1:]
    assert not read_otherwise(tokenizer, texts, processing, both)


def test_ids_that_a_config_names_are_kept() -> None:
    tokenizer, processing = demo()
    made = trimmed(tokenizer, ids_of_texts(tokenizer, ["a"], processing), (5990, 7000))
    assert {5990, 7000} <= set(made.kept.tolist()) and made.new(7000) == len(made.kept) - 1


def test_what_is_meant_is_told_apart() -> None:
    assert languages_in("en,zh") == ("en", "zh") and languages_in("captions.txt") is None
    with pytest.raises(UsageError, match="there is no language 'xx'") as caught:
        languages_in("en,xx")
    assert "zh" in caught.value.hint


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_an_export_with_fewer_tokens_embeds_its_texts_as_before(
    checkpoint: Callable[..., Artifact], tmp_path: Path, dtype: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "texts.txt").write_text("w1 w3\nw20 w3 w7\n")
    source = checkpoint()
    whole, small = (
        run_stage(
            STAGES["export"],
            ExportConfig(precisions=(dtype,), trim_vocab=trim),  # type: ignore[arg-type]
            {"checkpoint": source},
            (),
            tmp_path / f"out-{trim is None}",
        )
        for trim in (None, str(tmp_path / "texts.txt"))
    )
    assert small.model.text.vocab == small.manifest.facts["vocabulary"]["tokens"] < whole.model.text.vocab
    assert "tokens are kept" in capsys.readouterr().err
    with Encoder.open(whole, "onnxruntime") as before, Encoder.open(small, "onnxruntime") as after:
        texts = ["w1 w3", "w20 w3 w7", "w7 w1"]
        np.testing.assert_allclose(after.texts(texts), before.texts(texts), atol=1e-5)
    sizes = [made.manifest.files[f"text-{dtype}.onnx"].bytes for made in (whole, small)]
    assert sizes[1] < sizes[0]


def test_texts_whose_letters_are_lost_are_counted(
    checkpoint: Callable[..., Artifact], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "texts.txt").write_text("w1 w3\n")
    exported = {
        trim: run_stage(
            STAGES["export"], ExportConfig(trim_vocab=trim), {"checkpoint": checkpoint()}, (), tmp_path / f"o{i}"
        )
        for i, trim in enumerate([None, "en", str(tmp_path / "texts.txt")])
    }
    assert "too few different texts" in capsys.readouterr().err
    for trim, made in exported.items():
        warn_of_lost_letters(made, ["w1", "猫", "猫", "狗"])
        err = " ".join(capsys.readouterr().err.split())
        assert ("2 of 3 texts have letters" in err) == (trim is not None), err
        warn_of_lost_letters(made, ["w1", "w3 w1"])
        assert not capsys.readouterr().err


def test_the_tokens_beyond_the_context_are_kept() -> None:
    tokenizer, processing = demo()
    short = processing.model_copy(update={"context": 8})
    (elephant,) = tokenizer.encode(" elephant", add_special_tokens=False).ids[-1:]
    assert elephant in ids_of_texts(tokenizer, [f"{'a dog ' * 20}elephant"], short)
