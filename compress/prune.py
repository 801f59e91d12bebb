"""Structured pruning: whole attention heads and MLP units, by what the loss would lose without them.

First-order Taylor importance (Molchanov et al. 2019, "Importance Estimation for Neural Network Pruning", equation 8;
Michel et al. 2019 for heads): put a gate of 1 on each unit; the change of the loss when the gate closes is, to first
order, |sum over tokens of activation * gradient|, averaged over samples. The loss is the distillation loss against the
cached teacher, so no label is needed. What is left is a smaller config and smaller tensors, no masks.

Left out here: removing blocks and width, and a search over latency.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice

from torch import Tensor, nn

from mmcompress.architecture import DualEncoderConfig, TowerConfig
from mmcompress.compress.distill import distillation_loss
from mmcompress.compress.embed import load_embeddings
from mmcompress.compress.pairs import Pairs, training_pairs
from mmcompress.compress.student import copy_block, largest
from mmcompress.config import PruneConfig
from mmcompress.distributed import world
from mmcompress.model import FOLDER_FILES, Block, DualEncoder, dual_encoder_from_checkpoint, save_checkpoint
from mmcompress.pipeline import Job
from mmcompress.progress import track


def prune(job: Job[PruneConfig]) -> None:
    """Stage: remove the least important heads and MLP units of each block of a checkpoint."""
    config, source = job.config, job.sources["checkpoint"]
    embeddings = load_embeddings(job.sources["embeddings"])
    with world(config.device) as here:
        model = dual_encoder_from_checkpoint(source.path, source.model).to(here.device)
        pairs = training_pairs(
            source, config.data, batch=config.batch, seed=config.seed, here=here, embeddings=embeddings
        )
        steps = max(1, min(config.samples, pairs.count) // config.batch)
        batches = track(islice(pairs.stream(0, 0), steps), "importance", steps)
        scores = importance(model, batches, embeddings.anchors(config.anchors, here.device))
        pruned = without_least(model.cpu(), scores, config)
    save_checkpoint(pruned, job.draft.path)
    job.draft.inherit(source, *FOLDER_FILES)
    job.draft.model = pruned.config
    before = model.config
    job.draft.facts = {
        "params": pruned.config.params,
        "macs": pruned.config.macs,
        "macs_share": pruned.config.macs / before.macs,
    }


def importance(model: DualEncoder, batches: Iterable[Pairs], anchors: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    """First-order importance of every head (`….out`: (heads,)) and MLP unit (`….fc2`: (units,))."""
    totals: dict[str, Tensor] = {}
    for pairs in batches:
        with _inputs_of_last_linears(model) as inputs:
            assert pairs.teacher is not None
            distillation_loss(model(pairs.pixels, pairs.tokens), pairs.teacher, anchors).backward()
            for name, activation in inputs.items():
                assert activation.grad is not None
                products = (activation.detach() * activation.grad).sum(dim=1)  # (B, units), tokens summed
                if name.endswith(".out"):
                    products = products.unflatten(1, (_block(model, name).heads, -1)).sum(dim=2)
                found = products.abs().sum(dim=0).cpu()
                totals[name] = totals[name] + found if name in totals else found
        model.zero_grad(set_to_none=True)
    return totals


@contextmanager
def _inputs_of_last_linears(model: DualEncoder) -> Iterator[dict[str, Tensor]]:
    """Catch, with gradient, what goes into each out-projection and FC2."""
    inputs: dict[str, Tensor] = {}

    def catch(name: str) -> object:
        def hook(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            (activation,) = arguments
            activation.retain_grad()
            inputs[name] = activation

        return hook

    handles = [
        linear.register_forward_pre_hook(catch(name))  # type: ignore[arg-type]
        for name, linear in model.linears()
        if name.endswith((".out", ".fc2"))
    ]
    try:
        yield inputs
    finally:
        for handle in handles:
            handle.remove()


def without_least(model: DualEncoder, scores: Mapping[str, Tensor], config: PruneConfig) -> DualEncoder:
    """A smaller model with the most important heads and units of each block; equal to `model` if all are kept."""
    sizes: DualEncoderConfig = model.config
    towers = {
        tower: _smaller(getattr(sizes, tower), config) if tower in config.towers else getattr(sizes, tower)
        for tower in ("image", "text")
    }
    pruned = DualEncoder(sizes.model_copy(update=towers))
    state = model.state_dict()
    pruned.load_state_dict({k: state[k] if ".blocks." not in k else v for k, v in pruned.state_dict().items()})
    for tower in ("image", "text"):
        for i, block in enumerate(getattr(pruned, tower).blocks):
            original = getattr(model, tower).blocks[i]
            heads = largest(scores[f"{tower}.blocks.{i}.out"], block.heads)
            units = largest(scores[f"{tower}.blocks.{i}.fc2"], block.fc1.out_features)
            copy_block(block, original, heads, units)
    return pruned.eval()


def _smaller(tower: TowerConfig, config: PruneConfig) -> TowerConfig:
    def kept_units(units: int) -> int:
        rounded = round(units * config.mlp / config.mlp_multiple) * config.mlp_multiple
        return min(units, max(rounded, min(config.mlp_multiple, units))) if config.mlp < 1 else units

    return tower.model_copy(
        update={
            "heads": tuple(max(1, round(heads * config.heads)) for heads in tower.heads),
            "mlp": tuple(kept_units(units) for units in tower.mlp),
        }
    )


def _block(model: DualEncoder, linear: str) -> Block:
    block = model.get_submodule(linear.rpartition(".")[0])
    assert isinstance(block, Block)
    return block
