"""A teacher's tokenizer as the one form that teacher, cache, student, baseline and device share.

That form is a `tokenizer.json` and a `TextProcessing`. What the teacher's own class does in Python is not in such a
file, so both forms read some two hundred odd texts, and the first one that differs is an error. The reference is the
folder's own tokenizer in transformers, filled up to the context: case, punctuation and masks are what it makes of them.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from mmcompress.checkpoints import TOKENIZER_FILES, is_own_checkpoint, own_checkpoint
from mmcompress.errors import UsageError
from mmcompress.export.folders import config_of, tokenizer_of
from mmcompress.export.oddities import odd_texts
from mmcompress.export.sentencepieces import SPACE, siglip_tokenizer
from mmcompress.families import check_end, end_read
from mmcompress.foreign import foreign_code
from mmcompress.manifest import TextProcessing
from mmcompress.pretrained import quiet
from mmcompress.processing import save_tokenizer_config
from mmcompress.runtime.tokenize import attention_mask, load_tokenizer, text_processing, tokenize

_WHOLE = ("clip", "metaclip_2", "siglip", "siglip2")
"""Families that were trained with texts of all their positions."""
_TRAINED = {"chinese_clip": 52, "altclip": 77, "align": 64, "flava": 77}
"""Tokens that other families were trained with, by their papers' own code; their text towers have room for 512."""
_USUAL = 77
_AT_FAULT = "its files contradict one another, or a class of its own has a fault"


def text_processing_of(folder: Path, trust_remote_code: bool = False) -> tuple[Tokenizer, TextProcessing]:
    """The canonical form of a Hugging Face folder's tokenizer.

    Raises UsageError, with a text and both rows of ids, where a device would read it otherwise than transformers does.
    """
    if is_own_checkpoint(folder):
        own = own_checkpoint(folder)
        processing = text_processing(own)
        return load_tokenizer(own.file(processing.file)), processing
    reference = tokenizer_of(folder, trust_remote_code)
    return _canonical(folder, reference, config_of(folder, trust_remote_code))


def save_text_processing(folder: Path, target: Path, trust_remote_code: bool = False) -> TextProcessing:
    """Write the canonical form of a folder's tokenizer into `target`, as `tokenizer.json` and for `AutoTokenizer`.

    What is more than a `tokenizer.json` is written as its own class has it, with the vocabulary that this one reads.
    """
    if is_own_checkpoint(folder):
        own = own_checkpoint(folder)
        for name in own.manifest.files.keys() & TOKENIZER_FILES:
            shutil.copyfile(own.file(name), target / name)
        return text_processing(own)
    reference = tokenizer_of(folder, trust_remote_code)
    tokenizer, processing = _canonical(folder, reference, config_of(folder, trust_remote_code))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    tokenizer.save(str(target / processing.file))
    if not reference.is_fast:
        with foreign_code(f"saving the tokenizer in {folder} ({type(reference).__name__})", _AT_FAULT):
            reference.save_pretrained(target)
        return processing
    bos, eos, pad = (getattr(reference, f"{name}_token") for name in ("bos", "eos", "pad"))
    prefix = bool(getattr(reference, "add_prefix_space", False))
    save_tokenizer_config(
        target, processing.context, bos=bos, eos=eos, pad=pad, add_prefix_space=prefix, mask=processing.mask
    )
    return processing


def text_context(config: Any, tokenizer: Any) -> int:
    """Tokens of a text: the model's positions in the CLIP and SigLIP families, whatever its tokenizer states.

    Long-CLIP's 248 lie beside a tokenizer of 77. The text towers of other families are BERTs whose cost grows with
    every position, so there it is what they were trained with, and less if positions or tokenizer have less:
    52 for Chinese-CLIP (Yang et al. 2022, `context_length` of its code), 77 where nothing is known.
    """
    text = getattr(config, "text_config", None) or config
    positions = int(getattr(text, "max_position_embeddings", None) or _USUAL)
    if config.model_type in _WHOLE:
        return positions
    if config.model_type == "altclip" or getattr(text, "model_type", "") in ("xlm-roberta", "roberta"):
        positions -= text.pad_token_id + 1  # positions are counted from behind the padding's id
    return int(min(positions, tokenizer.model_max_length, _TRAINED.get(config.model_type, _USUAL)))


def _canonical(folder: Path, reference: Any, config: Any) -> tuple[Tokenizer, TextProcessing]:
    with foreign_code(f"reading the {type(reference).__name__} in {folder}", _AT_FAULT):
        return _read(folder, reference, config)


def _read(folder: Path, reference: Any, config: Any) -> tuple[Tokenizer, TextProcessing]:
    for side in ("padding_side", "truncation_side"):
        if getattr(reference, side) != "right":
            raise UsageError(
                f"the tokenizer in {folder} has {side} = {getattr(reference, side)!r}, expected 'right'",
                f"set {side} in its tokenizer_config.json, if the model was trained so",
            )
    mask = "attention_mask" in reference.model_input_names
    if mask and config.model_type in ("siglip", "siglip2"):
        raise UsageError(
            f"the tokenizer in {folder} gives an attention mask, and a {config.model_type} model reads what fills a"
            " text up",
            'set "model_input_names": ["input_ids"] in its tokenizer_config.json, as the published models have it',
        )
    if reference.pad_token_id is None:
        raise UsageError(f"the tokenizer in {folder} has no pad_token", "state one in its tokenizer_config.json")
    tokenizer = _fast_form(folder, reference)
    ids = tokenizer.encode("a").ids
    if not ids or ids[-1] == tokenizer.encode("a", add_special_tokens=False).ids[-1]:
        raise UsageError(
            f"the tokenizer in {folder} ends texts with no token of its own", "a text tower pools at that token"
        )
    processing = TextProcessing(
        context=text_context(config, reference),
        pad_token_id=reference.pad_token_id,
        eos_token_id=ids[-1],
        # a fast tokenizer does both by its tokenizer.json
        lowercase=not reference.is_fast and bool(reference.do_lower_case),
        prefix="" if reference.is_fast else SPACE,
        mask=mask,
    )
    _check_embedded(folder, tokenizer, config)
    text = getattr(config, "text_config", None)
    check_end(f"the tokenizer in {folder}", processing.eos_token_id, end_read(config.model_type, text))
    _check_repeats(folder, reference, tokenizer, processing)
    return tokenizer, processing


def _fast_form(folder: Path, reference: Any) -> Tokenizer:
    """The tokenizer as the `tokenizers` library has it, apart from the one that transformers goes on using."""
    if reference.is_fast:
        tokenizer = Tokenizer.from_str(reference.backend_tokenizer.to_str())
        tokenizer.no_padding()
        tokenizer.no_truncation()
        return tokenizer
    if type(reference).__name__ == "SiglipTokenizer":
        return siglip_tokenizer(reference)
    raise UsageError(
        f"the tokenizer in {folder} ({type(reference).__name__}) has no fast form",
        "a device needs a tokenizer.json: convert it with a newer transformers and save it there",
    )


def _check_embedded(folder: Path, tokenizer: Tokenizer, config: Any) -> None:
    """Tokens that were added to a tokenizer alone are found by the one text, much later, that has one."""
    rows = getattr(getattr(config, "text_config", None) or config, "vocab_size", None)
    token, largest = max(tokenizer.get_vocab().items(), key=lambda entry: entry[1])
    if rows is not None and largest >= rows:
        raise UsageError(
            f"the tokenizer in {folder} gives {token!r} the id {largest}, and its model embeds ids below {rows}",
            "tokenizer and config.json do not belong together: restore both, or take out what was added",
        )


def _check_repeats(folder: Path, reference: Any, tokenizer: Tokenizer, processing: TextProcessing) -> None:
    texts = odd_texts()
    ours = tokenize(tokenizer, texts, processing)
    with foreign_code(f"the tokenizer in {folder} ({type(reference).__name__})", _AT_FAULT), quiet():
        encoded = reference(texts, padding="max_length", truncation=True, max_length=processing.context)
    theirs = np.asarray(encoded["input_ids"])
    differ = (ours != theirs).any(axis=1)
    # where the end token also fills up, a mask cannot tell one that was written in a text; causal towers stop before it
    if processing.mask and processing.pad_token_id != processing.eos_token_id:
        differ |= (attention_mask(ours, processing) != np.asarray(encoded["attention_mask"])).any(axis=1)
    if differ.any():
        row = int(differ.argmax())
        raise UsageError(
            f"the tokenizer in {folder} ({type(reference).__name__}) reads {texts[row][:40]!r} as"
            f" {_short(theirs[row])}, and its tokenizer.json as {_short(ours[row])}",
            "a device has the tokenizer.json alone: save one that does all that the class does",
        )


def _short(ids: Any) -> str:
    return " ".join(map(str, ids[:12])) + (" …" if len(ids) > 12 else "")
