"""What torch makes of random inputs, which every graph that is exported is held against.

How far a graph in FP32 may be from torch is a bound on rounding. It is a fixed one for transformers. A BatchNorm of a
channel that hardly varies beside its mean, as in a student after a few steps, leaves few digits in float32, in torch as
in a graph: so a convolutional tower answers in float64, and where its own float32 is further from that than the bound
has room for, the bound is a few times as far.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmcompress.architecture import DualEncoderConfig
from mmcompress.convnet import ConvConfig
from mmcompress.embedding import spread
from mmcompress.errors import GateFailedError, require
from mmcompress.export.form import PLAIN, Form

BATCHES = (1, 3, 8)
TOLERANCE = 1e-4
"""Of the largest difference from torch; of 1 - cosine where the graph resizes, as a pixel may be a level aside."""
ROUNDINGS = 4.0
"""As many times as torch in float32 is from float64 may a graph of a convolutional tower be."""
OUTPUT = "embedding"


@dataclass(frozen=True)
class Reference:
    """Random inputs and what torch makes of them, for each tower and batch size."""

    cases: Mapping[str, tuple[tuple[NDArray[Any], NDArray[np.float32]], ...]]
    limits: Mapping[str, float]
    """How far a graph in FP32 may be, by tower."""

    @staticmethod
    def of(model: Any, form: Form = PLAIN) -> Reference:
        torch = require("torch", "compress")
        convolutional = isinstance(model.config.image, ConvConfig)
        exact = copy.deepcopy(model).double() if convolutional else model
        cases, limits = {}, dict.fromkeys(("image", "text"), TOLERANCE)
        for tower, encode in (("image", model.encode_image), ("text", model.encode_text)):
            drawn = form.images if tower == "image" and form.rule is not None else partial(_as_is, model.config, tower)
            with torch.inference_mode():
                inputs = [drawn(batch) for batch in BATCHES]
                answers = [(fed, encode(torch.from_numpy(x)).numpy()) for fed, x in inputs]
                if tower == "image" and convolutional:
                    single = np.concatenate([answer for _, answer in answers])
                    double = [(fed, exact.encode_image(torch.from_numpy(x).double())) for fed, x in inputs]
                    answers = [(fed, answer.float().numpy()) for fed, answer in double]
                    own = float(np.abs(single - np.concatenate([answer for _, answer in answers])).max())
                    limits[tower] = max(TOLERANCE, ROUNDINGS * own)
            cases[tower] = tuple(answers)
        return Reference(cases, limits)

    def compare(self, path: Path, tower: str) -> dict[str, float]:
        """Run a graph on ONNX Runtime: difference, cosine and how far answers are apart, over all batch sizes."""
        runtime = require("onnxruntime", "onnxruntime")
        options = runtime.SessionOptions()
        if path.name.endswith("-fp8.onnx"):  # optimizing, it moves FP8 through a Transpose that it has no kernel for
            options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        (name,) = (value.name for value in session.get_inputs())
        inputs, expected = zip(*self.cases[tower], strict=True)
        answers = [session.run([OUTPUT], {name: batch})[0] for batch in inputs]
        embeddings, wanted = np.concatenate(answers), np.concatenate(expected)
        if not np.isfinite(embeddings).all():
            raise GateFailedError(
                f"{path.name} answers random inputs with NaN or infinity",
                "FP16 overflows in some models: export the other precisions; FP32 that does is a broken checkpoint",
            )
        cosine = float((embeddings * wanted).sum(axis=1).min())
        apart = float(np.abs(embeddings - wanted).max())
        return {"max_abs": apart, "min_cosine": min(cosine, 1.0), "spread": spread(embeddings)}


def _as_is(config: DualEncoderConfig, tower: str, batch: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """What graphs and torch are fed where they take the same."""
    inputs = random_inputs(config, tower, batch)
    return inputs, inputs


def random_inputs(config: DualEncoderConfig, tower: str, batch: int, seed: int = 0) -> NDArray[Any]:
    """Normal pixels (B, 3, S, S), or token ids (B, T) that end at different places."""
    rng = np.random.default_rng([seed, batch])
    if tower == "image":
        side = config.image.image_size
        return rng.standard_normal((batch, 3, side, side), dtype=np.float32)
    text = config.text
    tokens = rng.integers(0, text.vocab, (batch, text.context), dtype=np.int32)
    end = text.vocab - 1 if text.pooling == "largest" else text.eos_token_id
    special = {id for id in (end, text.pad_token_id) if id < text.vocab}
    tokens[np.isin(tokens, [*special])] = next(id for id in range(text.vocab) if id not in special)
    for row, place in enumerate(rng.integers(1, text.context, batch)):
        if end in special:
            tokens[row, place] = end
        if text.pad_token_id in special:
            tokens[row, place + 1 :] = text.pad_token_id
    return tokens
