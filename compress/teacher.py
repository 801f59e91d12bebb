"""Teachers: anything that embeds images and texts into one space.

A checkpoint of ours that no class of transformers computes is a teacher too, by its manifest (`checkpoints.py`). Else
`transformers`' `get_image_features` and `get_text_features` are the seam, so CLIP, SigLIP, SigLIP 2, Chinese-CLIP and
MetaCLIP all come in through `AutoModel`. A hub is optional: a local folder always works. Code from a hub repository
runs only with `trust_remote_code`, and pickled weights are read by torch's restricted `weights_only` reader.

A teacher of one's own is `file.py:function`; the function takes no argument and returns a `Teacher`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from mmcompress.checkpoints import is_own_checkpoint
from mmcompress.compress.contract import Teacher, answered, check_teacher, logits_of, under_contract
from mmcompress.compress.dualtowers import dual_towers
from mmcompress.compress.openclip import open_clip_teacher
from mmcompress.compress.ownteacher import own_teacher
from mmcompress.compress.products import inferring
from mmcompress.config import TeacherConfig
from mmcompress.errors import UsageError
from mmcompress.export.pixels import image_processing
from mmcompress.export.texts import text_processing_of
from mmcompress.huggingface import dual_encoder_from_folder
from mmcompress.pretrained import TWO_TOWERS, image_features, load_model, text_features
from mmcompress.progress import say
from mmcompress.runtime.tokenize import attention_mask, tokenize
from mmcompress.teachers import OPEN_CLIP, own_code, resolve

__all__ = ["Teacher", "load_teacher"]

_SAME = 1e-5
"""Largest difference of a number of a unit embedding that sums in another order have."""


def load_teacher(config: TeacherConfig, device: torch.device) -> Teacher:
    """Build the teacher that `--teacher` names, in evaluation mode on the device, and hold it to its contract.

    It has answered the inputs that ship; one that knows nothing of them is a warning on the console. `files` are those
    that a teacher of one's own was read from.
    """
    source, own, code = config.source, own_code(config.source), None
    if own is not None:
        built, code = own_teacher(*own)
    elif source.startswith(OPEN_CLIP):
        built = open_clip_teacher(source.removeprefix(OPEN_CLIP), device)
    elif is_own_checkpoint(folder := resolve(config)):
        built = _checkpoint_teacher(folder, device)
    else:
        built = _hugging_face_teacher(folder, device, config.trust_remote_code)
    teacher = under_contract(built, source)
    warning = check_teacher(teacher, source)
    if warning is not None:
        say("", Path(source).name, f"warning: the teacher {source} is no better than chance: {warning}")
    return teacher if code is None else replace(teacher, files=code.finished())


def _checkpoint_teacher(folder: Path, device: torch.device) -> Teacher:
    model = dual_encoder_from_folder(folder).to(device)
    tokenizer, processing = text_processing_of(folder)

    def encode_image(pixels: Tensor) -> Tensor:
        with inferring():
            return model.encode_image(pixels.to(device))

    def encode_text(texts: Sequence[str]) -> Tensor:
        with inferring():
            return model.encode_text(torch.from_numpy(tokenize(tokenizer, texts, processing)).to(device))

    return Teacher(encode_image, encode_text, image_processing(folder), model.config.embed_dim, *logits_of(model))


def _hugging_face_teacher(folder: Path, device: torch.device, trust_remote_code: bool) -> Teacher:

    preprocessing = image_processing(folder, trust_remote_code)
    tokenizer, processing = text_processing_of(folder, trust_remote_code)
    model = load_model(folder, trust_remote_code).to(device)

    def encode_image(pixels: Tensor) -> Tensor:
        with inferring():
            return F.normalize(image_features(model, pixels.to(device)).float(), dim=-1).cpu()

    def encode_text(texts: Sequence[str]) -> Tensor:
        tokens = tokenize(tokenizer, texts, processing)
        encoded = {"input_ids": torch.from_numpy(tokens).long()}
        if processing.mask:
            encoded["attention_mask"] = torch.from_numpy(attention_mask(tokens, processing)).long()
            longest = int(encoded["attention_mask"].sum(1).max())  # what is masked in all of them need not be computed
            encoded = {name: tensor[:, :longest] for name, tensor in encoded.items()}
        with inferring():
            features = text_features(model, {name: tensor.to(device) for name, tensor in encoded.items()})
        return F.normalize(features.float(), dim=-1).cpu()

    width = answered(encode_text, ["a"], str(folder), "text").shape[1]
    if processing.mask and processing.pad_token_id == processing.eos_token_id:
        _check_filling(folder, model, tokenize(tokenizer, ["a"], processing), processing.eos_token_id)
    if model.config.model_type != TWO_TOWERS:
        return Teacher(encode_image, encode_text, preprocessing, width, *logits_of(model))
    towers = partial(dual_towers, model, tokenizer, processing)
    return Teacher(encode_image, encode_text, preprocessing, width, *logits_of(model), towers=towers)


def _check_filling(folder: Path, model: Any, tokens: NDArray[np.int32], end: int) -> None:
    """Raise UsageError if a second end token changes (1, T) tokens' embedding: no mask of ids can tell it from filling.

    Of a causal tower, CLIP's say, nothing behind the first one is read.
    """
    length = int((tokens == end).argmax()) + 1
    ids = torch.from_numpy(tokens[:, : length + 1]).long().to(model.device)
    if ids.shape[1] == length:
        return
    with inferring():
        once, twice = (
            F.normalize(text_features(model, {"input_ids": ids, "attention_mask": mask}).float(), dim=-1)
            for mask in (
                (torch.arange(length + 1, device=ids.device) < seen)[None].long() for seen in (length, length + 1)
            )
        )
    if (once - twice).abs().max() > _SAME:
        raise UsageError(
            f"the tokenizer in {folder} fills texts up with its end token (id {end}), and the text tower reads all"
            " tokens of a text: one that somebody wrote into it could not be told from filling",
            "state another pad_token in tokenizer_config.json, the one that the model was trained with",
        )
