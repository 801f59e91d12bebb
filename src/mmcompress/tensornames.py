"""Names of tensors at rest: those of the family's own class in transformers, and how they become the towers'.

One table, read in both directions and for torch tensors as for numpy arrays, so that loading, saving and the ONNX
writer agree. What a tower has decides its names, not the family: an attention head is SigLIP's, a text tower with
LayerNorms behind its blocks is BERT's (Chinese-CLIP), and one with a last LayerNorm as well is XLM-R's (AltCLIP). A
convolutional tower has timm's names (`convnames.py`).

Three things are folded on the way in, exactly but for rounding: BERT's embedding of the only token type goes into the
positions, the rows of AltCLIP's positions that nothing uses are left away, and its two Linears at the end become one.
They are written as zeros and as an identity, which the stock classes compute the same with. In a tower narrower than
its embedding, keys and values of the attention head have the names that `torch.nn.MultiheadAttention` gives them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from mmcompress.architecture import DualEncoderConfig, PoolingHead, TextConfig, TowerConfig
from mmcompress.convnames import conv_entries
from mmcompress.convnet import ConvConfig
from mmcompress.tensorentry import Array, Entry, Shape, read_entries, same

PARTS = ("image", "text", "logit")


def state_from_hugging_face(
    tensors: Mapping[str, Array], config: DualEncoderConfig, parts: Sequence[str] = PARTS, where: str = "the checkpoint"
) -> dict[str, Array]:
    """Our tensors of some parts. Raises CorruptInputError for the first of theirs that is missing or misshapen."""
    return read_entries(entries(config, parts), tensors, where)


def hugging_face_from_state(state: Mapping[str, Array], config: DualEncoderConfig) -> dict[str, Array]:
    """The inverse of `state_from_hugging_face`, for torch tensors."""
    tensors: dict[str, Array] = {}
    for entry in entries(config):
        tensors.update(zip(entry.theirs, entry.write(*(state[name] for name in entry.ours)), strict=True))
    return tensors


def entries(config: DualEncoderConfig, parts: Sequence[str] = PARTS) -> Iterator[Entry]:
    """The table for a model of these sizes."""
    for part in parts:
        yield from {"image": _image, "text": _text, "logit": _logit}[part](config)


def _image(config: DualEncoderConfig) -> Iterator[Entry]:
    tower, model, stem = config.image, "vision_model", "vision_model.embeddings"
    if isinstance(tower, ConvConfig):
        yield from conv_entries(tower, "image.", f"{model}.")
        yield same("image.projection.weight", "visual_projection.weight", config.embed_dim, tower.head)
        return
    yield same("image.patch.weight", f"{stem}.patch_embedding.weight", tower.width, 3, tower.patch, tower.patch)
    yield same("image.positions", f"{stem}.position_embedding.weight", tower.tokens, tower.width)
    yield from _norm("image.norm_post", f"{model}.post_layernorm", tower)
    yield from _pre_norm_blocks("image", f"{model}.encoder.layers", tower)
    if tower.head is not None:
        yield same("image.patch.bias", f"{stem}.patch_embedding.bias", tower.width)
        yield from _pooling(tower.head, tower, config.embed_dim)
        return
    yield same("image.class_token", f"{stem}.class_embedding", tower.width)
    yield from _norm("image.norm_pre", f"{model}.pre_layrnorm", tower)
    yield same("image.projection.weight", "visual_projection.weight", config.embed_dim, tower.width)


def _pooling(head: PoolingHead, tower: TowerConfig, width: int) -> Iterator[Entry]:
    ours, theirs = "image.head", "vision_model.head"
    yield Entry(
        (f"{ours}.probe",),
        {f"{theirs}.probe": (1, 1, width)},
        lambda probe: (probe.reshape(-1),),
        lambda probe: (probe.reshape(1, 1, -1),),
    )
    weights = (f"{ours}.query.weight", f"{ours}.kv.weight")
    if tower.width == width:
        yield Entry(weights, {f"{theirs}.attention.in_proj_weight": (3 * width, width)}, _first(width), _together)
    else:
        shapes: dict[str, Shape] = {f"{theirs}.attention.{x}_proj_weight": (width, tower.width) for x in "qkv"}
        shapes[f"{theirs}.attention.q_proj_weight"] = (width, width)
        yield Entry(weights, shapes, lambda q, k, v: (q, _joined(k, v)), lambda q, kv: (q, *_split(kv, 2)))
    biases = (f"{ours}.query.bias", f"{ours}.kv.bias")
    yield Entry(biases, {f"{theirs}.attention.in_proj_bias": (3 * width,)}, _first(width), _together)
    yield from _linear(f"{ours}.out", f"{theirs}.attention.out_proj", width, width)
    yield from _norm(f"{ours}.norm", f"{theirs}.layernorm", width)
    yield from _linear(f"{ours}.fc1", f"{theirs}.mlp.fc1", width, head.mlp)
    yield from _linear(f"{ours}.fc2", f"{theirs}.mlp.fc2", head.mlp, width)


def _text(config: DualEncoderConfig) -> Iterator[Entry]:
    tower = config.text
    if tower.norm == "post":
        yield from _post_norm_text(config)
        return
    stem = "text_model.embeddings"
    yield same("text.tokens.weight", f"{stem}.token_embedding.weight", tower.vocab, tower.width)
    yield same("text.positions", f"{stem}.position_embedding.weight", tower.context, tower.width)
    yield from _norm("text.norm_post", "text_model.final_layer_norm", tower)
    yield from _pre_norm_blocks("text", "text_model.encoder.layers", tower)
    if tower.projection_bias:
        yield from _linear("text.projection", "text_model.head", tower.width, config.embed_dim)
    else:
        yield same("text.projection.weight", "text_projection.weight", config.embed_dim, tower.width)


def _post_norm_text(config: DualEncoderConfig) -> Iterator[Entry]:
    tower = config.text
    model = "text_model.roberta" if tower.final_norm else "text_model"
    stem, unused = f"{model}.embeddings", unused_positions(tower)
    yield same("text.tokens.weight", f"{stem}.word_embeddings.weight", tower.vocab, tower.width)
    yield Entry(
        ("text.positions",),
        {
            f"{stem}.position_embeddings.weight": (tower.position_rows + unused, tower.width),
            f"{stem}.token_type_embeddings.weight": ("T", tower.width),
        },
        lambda rows, types: (rows[unused:] + types[0],),
        lambda rows: (_joined(*[rows[:1] * 0] * unused, rows), rows[:1] * 0),
    )
    yield from _norm("text.norm_pre", f"{stem}.LayerNorm", tower)
    for i, mlp in enumerate(tower.mlp):
        ours, theirs, inner = f"text.blocks.{i}", f"{model}.encoder.layer.{i}", tower.heads[i] * tower.head_dim
        parts = [f"{theirs}.attention.self.{part}" for part in ("query", "key", "value")]
        yield from _qkv(f"{ours}.qkv", parts, tower.width, inner)
        yield from _linear(f"{ours}.out", f"{theirs}.attention.output.dense", inner, tower.width)
        yield from _norm(f"{ours}.norm1", f"{theirs}.attention.output.LayerNorm", tower)
        yield from _linear(f"{ours}.fc1", f"{theirs}.intermediate.dense", tower.width, mlp)
        yield from _linear(f"{ours}.fc2", f"{theirs}.output.dense", mlp, tower.width)
        yield from _norm(f"{ours}.norm2", f"{theirs}.output.LayerNorm", tower)
    if not tower.final_norm:
        yield same("text.projection.weight", "text_projection.weight", config.embed_dim, tower.width)
        return
    yield from _norm("text.norm_post", "text_model.pre_LN", tower)
    yield Entry(
        ("text.projection.weight", "text.projection.bias"),
        {
            "text_projection.weight": (config.embed_dim, "P"),
            "text_model.transformation.weight": ("P", tower.width),
            "text_model.transformation.bias": ("P",),
        },
        lambda outer, inner, bias: (outer @ inner, outer @ bias),
        lambda weight, bias: (_identity(weight), weight, bias),
    )


def unused_positions(tower: TextConfig) -> int:
    """Rows in front of the position table at rest that no token has: XLM-R counts from the pad id on."""
    return tower.pad_token_id if tower.counts_written else 0


def _logit(config: DualEncoderConfig) -> Iterator[Entry]:
    shape: Shape = (1,) if config.sigmoid else ()
    for name in ("logit_scale", "logit_bias")[: 1 + config.sigmoid]:
        yield Entry((name,), {name: shape}, lambda x: (x.reshape(()),), lambda x: (x.reshape(shape),))


def _pre_norm_blocks(ours: str, theirs: str, tower: TowerConfig) -> Iterator[Entry]:
    for i, mlp in enumerate(tower.mlp):
        block, layer, inner = f"{ours}.blocks.{i}", f"{theirs}.{i}", tower.heads[i] * tower.head_dim
        yield from _qkv(f"{block}.qkv", [f"{layer}.self_attn.{x}_proj" for x in "qkv"], tower.width, inner)
        yield from _norm(f"{block}.norm1", f"{layer}.layer_norm1", tower)
        yield from _linear(f"{block}.out", f"{layer}.self_attn.out_proj", inner, tower.width)
        yield from _norm(f"{block}.norm2", f"{layer}.layer_norm2", tower)
        yield from _linear(f"{block}.fc1", f"{layer}.mlp.fc1", tower.width, mlp)
        yield from _linear(f"{block}.fc2", f"{layer}.mlp.fc2", mlp, tower.width)


def _linear(ours: str, theirs: str, inputs: int, outputs: int) -> Iterator[Entry]:
    yield same(f"{ours}.weight", f"{theirs}.weight", outputs, inputs)
    yield same(f"{ours}.bias", f"{theirs}.bias", outputs)


def _norm(ours: str, theirs: str, of: TowerConfig | int) -> Iterator[Entry]:
    for leaf in ("weight", "bias"):
        yield same(f"{ours}.{leaf}", f"{theirs}.{leaf}", of if isinstance(of, int) else of.width)


def _qkv(ours: str, theirs: Sequence[str], width: int, inner: int) -> Iterator[Entry]:
    for leaf, shape in (("weight", (inner, width)), ("bias", (inner,))):
        names: dict[str, Shape] = {f"{name}.{leaf}": shape for name in theirs}
        yield Entry((f"{ours}.{leaf}",), names, _together, lambda x: _split(x, 3))


def _first(rows: int) -> Callable[[Array], Sequence[Array]]:
    return lambda x: (x[:rows], x[rows:])


def _split(x: Array, parts: int) -> list[Array]:
    rows = len(x) // parts
    return [x[i * rows : (i + 1) * rows] for i in range(parts)]


def _together(*parts: Array) -> tuple[Array]:
    return (_joined(*parts),)


def _joined(*parts: Array) -> Array:
    """Rows below rows."""
    if isinstance(parts[0], np.ndarray):
        return np.concatenate(parts)
    import torch

    return torch.cat(parts)


def _identity(like: Array) -> Array:
    import torch

    return torch.eye(len(like), dtype=like.dtype, device=like.device)
