"""The convert stage: a teacher's own weights as a checkpoint, so that everything that takes one works without training.

Nothing is changed: the checkpoint computes what the teacher computes, in float32. That is held against the teacher's
own code, its tokenizer included, on sentences of several lengths and cases and on random pixels, since weights that
load may still be computed otherwise.
"""

from __future__ import annotations

import numpy as np
import torch

from mmcompress.artifact import Draft
from mmcompress.compress.teacher import Teacher, load_teacher
from mmcompress.config import ConvertConfig
from mmcompress.data.sentences import sentences
from mmcompress.errors import GateFailedError
from mmcompress.export.pixels import image_processing
from mmcompress.export.texts import save_text_processing
from mmcompress.huggingface import dual_encoder_from_folder, save_checkpoint, with_tokenizer
from mmcompress.model import DualEncoder
from mmcompress.processing import save_preprocessing
from mmcompress.runtime.tokenize import load_tokenizer, tokenize
from mmcompress.stages import Job
from mmcompress.teachers import resolve

TOLERANCE = 1e-4
"""Largest difference of a number of a unit embedding: what sums in another order differ by, and no more."""
_IMAGES, _TEXTS = 4, 16


def convert(job: Job[ConvertConfig]) -> None:
    """Stage: write the checkpoint, and compare it with the teacher."""
    teacher, draft = job.config.teacher, job.draft
    folder = resolve(teacher)
    draft.preprocessing = image_processing(folder, teacher.trust_remote_code)
    save_preprocessing(draft.preprocessing, draft.path)
    draft.tokenizer = save_text_processing(folder, draft.path, teacher.trust_remote_code)
    model = with_tokenizer(dual_encoder_from_folder(folder), draft.tokenizer)
    save_checkpoint(model, draft.path)
    draft.model = model.config
    differences = against_teacher(model, draft, load_teacher(teacher, torch.device("cpu")))
    for tower, apart in differences.items():
        if not apart <= TOLERANCE:
            raise GateFailedError(
                f"the {tower} tower of {teacher.source} as a checkpoint differs from the teacher by {apart:.2e}",
                f"the limit is {TOLERANCE}; the model is not what its config says: use it as a teacher, with distill",
            )
    draft.facts = {"params": model.config.params, "macs": model.config.macs}
    draft.metrics = {"against_teacher": differences}


def against_teacher(model: DualEncoder, draft: Draft, teacher: Teacher) -> dict[str, float]:
    """Largest difference of a number of the embeddings, by tower."""
    text, preprocessing = draft.tokenizer, draft.preprocessing
    assert text is not None and preprocessing is not None
    spread = sentences()[:: len(sentences()) // _TEXTS]
    texts = [words.upper() if index % 4 == 3 else words for index, words in enumerate(spread)]
    tokens = torch.from_numpy(tokenize(load_tokenizer(draft.path / text.file), texts, text))
    shape = (_IMAGES, 3, preprocessing.size, preprocessing.size)
    pixels = torch.from_numpy(np.random.default_rng(0).standard_normal(shape, dtype=np.float32))
    with torch.inference_mode():
        ours = {"image": model.encode_image(pixels), "text": model.encode_text(tokens)}
    theirs = {"image": teacher.encode_image(pixels), "text": teacher.encode_text(texts)}
    return {tower: float((ours[tower] - theirs[tower]).abs().max()) for tower in ours}
