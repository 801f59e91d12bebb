"""A checkpoint with a smaller vocabulary, as it is exported: rows of its token table, its tokenizer, what is lost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmcompress.architecture import DualEncoderConfig
from mmcompress.artifact import Artifact, Draft
from mmcompress.data.batches import read
from mmcompress.data.layout import read_lines
from mmcompress.data.sentences import sentences
from mmcompress.data.spec import is_photos
from mmcompress.errors import UsageError
from mmcompress.export.graph import Array
from mmcompress.export.vocabulary import (
    SCRIPTS,
    Vocabulary,
    ids_of_languages,
    languages_in,
    read_otherwise,
    trimmed,
    vocabulary_of_texts,
)
from mmcompress.formats import count, percent
from mmcompress.home import expanded
from mmcompress.manifest import TextProcessing
from mmcompress.packaged import packaged
from mmcompress.progress import say
from mmcompress.runtime.tokenize import load_tokenizer, text_processing
from mmcompress.tensornames import entries

_ROWS = "text.tokens.weight"


@dataclass(frozen=True)
class Trim:
    """A smaller vocabulary of one checkpoint."""

    vocabulary: Vocabulary
    model: DualEncoderConfig
    """The sizes that are left."""
    processing: TextProcessing
    facts: Mapping[str, Any]

    def tensors(self, tensors: Mapping[str, Array]) -> dict[str, Array]:
        """Those of the checkpoint, with the rows that are kept."""
        table = next(entry for entry in entries(self.model, ("text",)) if entry.ours == (_ROWS,))
        (name,) = table.theirs
        return {**tensors, name: tensors[name][self.vocabulary.kept]}

    def shorten(self, encoder: Any) -> None:
        """The same of the torch model."""
        tokens = encoder.text.tokens
        tokens.weight.data = tokens.weight.data[self.vocabulary.kept]
        encoder.config, encoder.text.config = self.model, self.model.text

    def write(self, draft: Draft) -> None:
        """The tokenizer, and what the manifest says of it."""
        draft.model, draft.tokenizer = self.model, self.processing
        self.vocabulary.tokenizer.save(str(draft.path / self.processing.file))


def texts_in(said: str) -> list[str]:
    """The texts of a file with one a line, or the captions of image-text pairs."""
    path = packaged(said) if said == "demo:names" else expanded(said)
    if path.suffix == ".txt":
        if not path.is_file():
            raise UsageError(f"there is no file {said}", "give texts, one a line, pairs, or languages: en,zh")
        return read_lines(path, "texts", "one text a line")
    if is_photos(said):
        raise UsageError(f"{said} has photos without texts", "give texts, one a line, pairs, or languages: en,zh")
    return [caption for sample in read(said) for caption in sample.captions]


def check_trim(said: str) -> None:
    """Raise UsageError for a language that is not known, and for texts that are not there."""
    if languages_in(said) is None and (Path(said).suffix == ".txt" or not Path(said).exists()):
        texts_in(said)


def trim_of(said: str | None, source: Artifact, name: str) -> Trim | None:
    """The vocabulary of a corpus or of some languages, for the artifact `name`; says what is lost."""
    if said is None:
        return None
    processing, model = text_processing(source), source.model
    tokenizer = load_tokenizer(source.file(processing.file))
    text = model.text
    named = (text.eos_token_id, text.bos_token_id, text.pad_token_id, processing.pad_token_id, processing.eos_token_id)
    also = {id for id in named if 0 <= id < text.vocab}
    codes = languages_in(said)
    if codes is None:
        texts = texts_in(said)
        vocabulary, share = vocabulary_of_texts(tokenizer, texts, processing, also)
        whose = "held-out texts of the corpus"
    else:
        vocabulary = trimmed(tokenizer, ids_of_languages(tokenizer, codes), also)
        texts = list(sentences()) if "en" in codes else []
        share = len(read_otherwise(tokenizer, texts, processing, vocabulary)) / len(texts) if texts else None
        whose = "the English sentences that ship"
    kept = len(vocabulary.kept)
    dropped = 4 * (text.vocab - kept) * text.width
    say("export", name, f"{count(kept)} of {count(text.vocab)} tokens are kept: {dropped / 1e6:.1f} MB fewer in FP32")
    if codes is None and share is None:
        say("", "", "too few different texts to hold some out: how other texts are read is not measured")
    if share is not None:
        say("", "", f"{percent(share)} of {whose} are read in other tokens than before")
    ids = {key: int(vocabulary.new(getattr(text, key))) for key in _IDS if getattr(text, key) in also}
    return Trim(
        vocabulary,
        model.model_copy(update={"text": text.model_copy(update={"vocab": kept, **ids})}),
        vocabulary.processing(processing),
        {
            "languages": list(codes or ()),
            "scripts": sorted({script for code in codes or () for script in SCRIPTS[code]}),
            "texts": 0 if codes else len(texts),
            "tokens": kept,
            "tokens_before": text.vocab,
            "read_otherwise": share,
            "read_otherwise_of": None if share is None else whose,
        },
    )


_IDS = ("eos_token_id", "bos_token_id", "pad_token_id")
