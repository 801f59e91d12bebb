"""A tokenizer trained on the captions themselves: byte-level BPE, so that every script works and nothing is unknown.

CLIP's own vocabulary has 49,408 entries, most of a small model's parameters; a narrow domain needs a few thousand.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from mmcompress.artifact import TextProcessing
from mmcompress.strictjson import text_from_json

BEGIN, END = "<|startoftext|>", "<|endoftext|>"


def tokenizer_from_captions(captions: Iterable[str], vocab: int) -> Tokenizer:
    """Lower-case byte-level BPE (Sennrich et al. 2016; Radford et al. 2019) with CLIP's begin and end tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=[BEGIN, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(captions, trainer)
    begin, end = tokenizer.token_to_id(BEGIN), tokenizer.token_to_id(END)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A {END}", special_tokens=[(BEGIN, begin), (END, end)]
    )
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path, context: int) -> TextProcessing:
    """Write it where `transformers.AutoTokenizer` and ours find it."""
    tokenizer.save(str(folder / "tokenizer.json"))
    end = tokenizer.token_to_id(END)
    save_tokenizer_config(folder, context, bos=BEGIN, eos=END, pad=END, add_prefix_space=True)
    return TextProcessing(context=context, pad_token_id=end, eos_token_id=end)


def save_tokenizer_config(
    folder: Path, context: int, *, bos: str | None, eos: str | None, pad: str | None, add_prefix_space: bool
) -> None:
    """Tell `AutoTokenizer` that `tokenizer.json` is all there is; unasked, it would switch the prefix space off."""
    written = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": bos,
        "eos_token": eos,
        "pad_token": pad,
        "model_max_length": context,
        "add_prefix_space": add_prefix_space,
        "model_input_names": ["input_ids", "attention_mask"],
    }
    (folder / "tokenizer_config.json").write_text(text_from_json(written, indent=2) + "\n", encoding="utf-8")
