"""The form of the image graphs that are delivered: what they take, and what they answer beside the embedding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mmcompress.artifact import Artifact
from mmcompress.config import ExportConfig
from mmcompress.data.layout import read_labels, read_templates
from mmcompress.data.preprocess import normalize, plain_view
from mmcompress.errors import UsageError, require
from mmcompress.export.imageinput import Size, check_image_input, size_of, with_image_input
from mmcompress.export.opset import check_opset
from mmcompress.export.promptbank import Bank, bank_of, with_bank
from mmcompress.export.trim import check_trim
from mmcompress.manifest import Preprocessing
from mmcompress.runtime.tokenize import load_tokenizer, text_processing, tokenize

PREPARED = "prepared"


@dataclass(frozen=True)
class Form:
    """Prepared pixels in and an embedding out, unless something is said."""

    rule: Preprocessing | None = None
    """The preprocessing that is in the graphs."""
    size: Size | None = None
    """Of the images that they then take; None for any."""
    bank: Bank | None = None
    scale: float = 1.0
    """Of the bank's logits."""
    bias: float | None = None

    def put_around(self, model: Any) -> None:
        """Give an image graph this form."""
        if self.rule is not None:
            with_image_input(model, self.rule, self.size)
        if self.bank is not None:
            with_bank(model, self.bank, self.scale, self.bias)

    def images(self, batch: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """Random images (B, H, W, 3) for graphs that prepare them, and what preprocessing makes of them."""
        assert self.rule is not None
        rng = np.random.default_rng([1, batch])
        shorter = self.rule.resize
        height, width = self.size or (shorter + 7 * batch, 2 * shorter - 5 * batch)
        coarse = rng.integers(0, 256, (batch, -(-height // 4), -(-width // 4), 3), dtype=np.uint8)
        images = coarse.repeat(4, axis=1).repeat(4, axis=2)[:, :height, :width]
        views = np.stack([plain_view(Image.fromarray(image), self.rule) for image in images])
        return images, normalize(views, self.rule)


PLAIN = Form()


def check_export(config: ExportConfig, sources: Mapping[str, Artifact]) -> None:
    """Raise UsageError for an opset that nothing here knows, for labels and texts that cannot be read, and for images
    that no graph prepares."""
    check_opset(config)
    if config.bank.labels is not None:
        read_labels(config.bank.labels)
    if config.bank.templates is not None:
        read_templates(config.bank.templates)
    if config.trim_vocab is not None:
        check_trim(config.trim_vocab)
    source = sources.get("checkpoint")
    if source is not None and config.image_input != PREPARED:
        check_image_input(_rule(source), size_of(config.image_input))


def form_of(config: ExportConfig, source: Artifact, encoder: Any, logits: Mapping[str, float | None]) -> Form:
    """What a config asks for; `encoder` is the checkpoint's torch model, which embeds the labels."""
    torch = require("torch", "compress")

    def embed(texts: Sequence[str]) -> NDArray[np.float32]:
        processing = text_processing(source)
        tokens = tokenize(load_tokenizer(source.file(processing.file)), texts, processing)
        with torch.inference_mode():
            embedded: NDArray[np.float32] = encoder.encode_text(torch.from_numpy(tokens)).numpy()
        return embedded

    inside = config.image_input != PREPARED
    return Form(
        _rule(source) if inside else None,
        size_of(config.image_input) if inside else None,
        bank_of(config.bank, embed),
        logits["logit_scale"] or 1.0,
        logits["logit_bias"],
    )


def _rule(source: Artifact) -> Preprocessing:
    if source.preprocessing is None:
        raise UsageError(f"{source.path} does not say how images are prepared", "convert or distill it again")
    return source.preprocessing
