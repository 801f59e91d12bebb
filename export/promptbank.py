"""A prompt bank: embeddings of labels inside the image graph, so that a device answers with scores and no text tower.

The embeddings are those of the float model, whatever the precision of the graph: they are computed once, on the machine
that exports, and float costs a device nothing. So an INT8 graph with a bank has less error than the same graph beside
its own INT8 text tower. The graph keeps its output `embedding`; a second one, `logits`, is a product with the bank.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmcompress.config import BankConfig
from mmcompress.data.layout import prompts, read_labels, read_templates
from mmcompress.export.graph import GraphWriter, Numerics
from mmcompress.manifest import PromptBank

LOGITS = "logits"
Embed = Callable[[Sequence[str]], NDArray[np.float32]]
"""B texts -> (B, D) of unit norm."""
_AT_ONCE = 64


@dataclass(frozen=True)
class Bank:
    """Labels and what they are compared by."""

    said: PromptBank
    embeddings: NDArray[np.float32]
    """(L, D) of unit norm"""


def bank_of(config: BankConfig, embed: Embed) -> Bank | None:
    """Embed the labels of a config; each is the normalized mean of its prompts (Radford et al. 2021, section 3.1.4)."""
    if config.labels is None:
        return None
    labels = read_labels(config.labels)
    templates = read_templates(config.templates) if config.templates is not None else []
    texts = prompts(labels, templates or ["{}"])
    parts = [embed(texts[start : start + _AT_ONCE]) for start in range(0, len(texts), _AT_ONCE)]
    means = np.concatenate(parts).reshape(len(labels), len(templates) or 1, -1).mean(axis=1)
    said = PromptBank(labels=tuple(labels), templates=tuple(templates))
    return Bank(said, means / np.linalg.norm(means, axis=1, keepdims=True))


def with_bank(model: Any, bank: Bank, scale: float, bias: float | None) -> None:
    """Give an image graph the output `logits` (N, L) float32: scale times cosine, plus the bias if there is one."""
    g = GraphWriter(model.opset_import[0].version, Numerics())
    labels = g.real(f"{LOGITS}.bank", bank.embeddings.T * scale)
    x = g.node("MatMul", f"{LOGITS}.scaled" if bias else LOGITS, model.graph.output[0].name, labels)
    if bias:
        g.node("Add", LOGITS, x, g.real("logits.bias", bias))
    g.put_behind(model, (LOGITS, np.float32, (len(bank.said.labels),)))
