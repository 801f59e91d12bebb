"""Checkpoints on disk: folders as transformers writes them, read strictly and written for the family's stock class.

What a `config.json` says is read in `families.py`, and what tensors are called stands in `tensornames.py`; the first
tensor that is missing, unexpected or of another shape is named. A checkpoint that no stock class computes has the same
tensor names, its sizes in the manifest, and a README that says why.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from mmcompress.architecture import WEIGHTS, DualEncoderConfig
from mmcompress.checkpoints import TOKENIZER_FILES, is_own_checkpoint, own_checkpoint
from mmcompress.errors import CorruptInputError, UsageError
from mmcompress.families import check_end, config_from_hugging_face, family_of, hugging_face_config
from mmcompress.manifest import TextProcessing
from mmcompress.model import DualEncoder
from mmcompress.strictjson import text_from_json
from mmcompress.tensornames import entries, hugging_face_from_state, state_from_hugging_face
from mmcompress.weights import WEIGHT_FILES, first_not_finite, not_finite, read_weights, weight_files

FOLDER_FILES = (*TOKENIZER_FILES, "preprocessor_config.json")
"""What a checkpoint takes over from the one it was made from."""
_BUFFERS = ("position_ids", "token_type_ids")
"""Counters that older versions of transformers saved beside the weights."""


def dual_encoder_from_hugging_face(folder: str | Path) -> DualEncoder:
    """Load a Hugging Face folder of one of the families, strictly, in float32."""
    folder = Path(folder)
    return _dual_encoder(folder, config_from_hugging_face(folder), WEIGHT_FILES)


def dual_encoder_from_folder(folder: Path) -> DualEncoder:
    """Load a Hugging Face folder, or a checkpoint of ours where a teacher may be one (`checkpoints.py`)."""
    if is_own_checkpoint(folder):
        return dual_encoder_from_checkpoint(folder, own_checkpoint(folder).model)
    return dual_encoder_from_hugging_face(folder)


def dual_encoder_from_checkpoint(folder: str | Path, config: DualEncoderConfig) -> DualEncoder:
    """Load weights with Hugging Face names into a model of the given sizes; the first tensor that differs is named."""
    return _dual_encoder(Path(folder), config, WEIGHT_FILES[:1])


def _dual_encoder(folder: Path, config: DualEncoderConfig, files: Sequence[str]) -> DualEncoder:
    tensors = {name: tensor for file in weight_files(folder, files) for name, tensor in read_weights(file).items()}
    expected = [name for entry in entries(config) for name in entry.theirs]
    floats = {name: tensors[name].float() for name in expected if name in tensors}
    state = state_from_hugging_face(floats, config, where=str(folder))
    for name in expected:
        if not tensors[name].is_floating_point():
            raise CorruptInputError(f"{folder}: tensor {name!r} is {tensors[name].dtype}", "expected a float type")
    broken = first_not_finite(floats.items())
    if broken is not None:
        raise not_finite(folder, broken)
    known = {*expected}
    for name in tensors:
        if name not in known and not name.endswith(_BUFFERS):
            raise CorruptInputError(f"{folder}: unexpected tensor {name!r}", "the weights do not belong to this config")
    with torch.device("meta"):  # no random weights, which take as long to draw as the file to read
        model = DualEncoder(config)
    model.to_empty(device="cpu").load_state_dict(state, strict=True)
    return model.eval()


def with_tokenizer(model: DualEncoder, processing: TextProcessing) -> DualEncoder:
    """The model for texts as its tokenizer makes them: the positions behind the tokenizer's context go, exactly.

    Raises UsageError where there are too few positions, where a masked tower would take other tokens for padding, or
    where no text has the end token that the tower reads.
    """
    text, context, hint = model.config.text, processing.context, "config.json and tokenizer do not belong together"
    if context > text.context:
        raise UsageError(
            f"the tokenizer makes {context} tokens of a text, and the model has positions for {text.context}", hint
        )
    if text.attention == "masked" and processing.pad_token_id != text.pad_token_id:
        raise UsageError(
            f"the tokenizer pads with id {processing.pad_token_id}, and the model masks id {text.pad_token_id}", hint
        )
    if text.attention == "masked" and not processing.mask:
        raise UsageError("the tokenizer masks nothing of what fills a text up, and the model's text tower does", hint)
    if text.attention == "masked" and processing.pad_token_id == processing.eos_token_id:
        raise UsageError(
            f"the tokenizer fills texts up with its end token (id {processing.eos_token_id}), which the model then"
            " takes for padding",
            "state another pad_token in tokenizer_config.json, the one that the model was trained with",
        )
    check_end("the tokenizer", processing.eos_token_id, text.eos_token_id if text.pooling == "end" else None)
    if context == text.context:
        return model
    text = text.model_copy(update={"context": context})
    model.config = model.config.model_copy(update={"text": text})
    model.text.config = text
    model.text.positions = nn.Parameter(model.text.positions.detach()[: text.position_rows].clone())
    return model


def save_checkpoint(model: DualEncoder, folder: Path, dtype: torch.dtype = torch.float32) -> None:
    """Write `model.safetensors` with Hugging Face names and, where a stock class computes the model, `config.json`.

    Raises UsageError, and writes nothing, for weights that are NaN or that the type cannot hold.
    """
    state = hugging_face_from_state(model.state_dict(), model.config)
    tensors = {k: v.detach().to("cpu", dtype).contiguous() for k, v in state.items()}
    broken = first_not_finite(tensors.items())
    if broken is not None:
        raise UsageError(
            f"the model is broken: {broken!r} became NaN or infinite, so no checkpoint is written",
            "lower the learning rate; weights that float16 cannot hold are saved in float32",
        )
    save_file(tensors, folder / WEIGHTS)
    family, why = family_of(model.config)
    if family is None:
        (folder / "README.md").write_text(_NO_STOCK_CLASS.format(why=why), encoding="utf-8")
        return
    text = text_from_json(hugging_face_config(model.config, family, str(dtype).removeprefix("torch.")), indent=2)
    (folder / "config.json").write_text(text + "\n", encoding="utf-8")


_NO_STOCK_CLASS = """# A checkpoint of mmcompress

transformers has no class that opens this folder: {why}.
`mmcompress export` writes its towers as ONNX graphs, and `mmcompress classify` and `search` run those.
The sizes are in `manifest.json`, the weights in `model.safetensors`.
"""
