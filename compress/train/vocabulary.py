"""A tokenizer trained on the captions themselves: byte-level BPE, so that every script works and nothing is unknown.

CLIP's own vocabulary has 49,408 entries, most of a small model's parameters; a narrow domain needs a few thousand.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from mmcompress.manifest import TextProcessing
from mmcompress.processing import save_tokenizer_config

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


def vocabulary_size(tokenizer: Tokenizer) -> int:
    """Rows that an embedding of its ids needs: one more than the largest id, since ids may have gaps."""
    return 1 + int(max(tokenizer.get_vocab().values()))


def save_tokenizer(tokenizer: Tokenizer, folder: Path, context: int) -> TextProcessing:
    """Write it where `transformers.AutoTokenizer` and ours find it."""
    tokenizer.save(str(folder / "tokenizer.json"))
    end = tokenizer.token_to_id(END)
    save_tokenizer_config(folder, context, bos=BEGIN, eos=END, pad=END, add_prefix_space=True)
    return TextProcessing(context=context, pad_token_id=end, eos_token_id=end)
