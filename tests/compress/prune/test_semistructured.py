"""2:4 sparsity: the pattern, what it costs with and without compensation, and that it lasts to the graphs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from clip_world import write_squares, write_teacher
from small_model import outputs, random_pixels, random_tokens, small_model
from torch import Tensor

from mmcompress.compress.int8.rounding import factor_of, gptq
from mmcompress.compress.prune.semistructured import is_two_four, keep_zeros, sparsified, two_four
from mmcompress.errors import UsageError
from mmcompress.export.sparsity import two_four_weights
from mmcompress.huggingface import dual_encoder_from_checkpoint
from mmcompress.pipeline.recipe import load_recipe
from mmcompress.pipeline.run import run_recipe


def correlated(inputs: int, rows: int = 400) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(inputs, inputs, generator=generator)
    return torch.randn(rows, inputs, generator=generator) @ mixing


def by_magnitude(weight: Tensor) -> Tensor:
    groups = weight.unflatten(1, (-1, 4))
    least = groups.abs().argsort(dim=-1)[..., :2]
    return groups.scatter(-1, least, 0).flatten(1)


def test_with_independent_inputs_the_two_that_carry_most_stay_as_they_are() -> None:
    """Optimal brain surgeon on a diagonal Hessian: w^2 H_ii decides, and nothing is compensated."""
    weight = torch.randn(16, 24, generator=torch.Generator().manual_seed(1))
    size = torch.rand(24, generator=torch.Generator().manual_seed(2)) + 0.1
    found = two_four(weight, torch.diag(size**2), ridge=0)
    expected = by_magnitude(weight * size) / size
    torch.testing.assert_close(found, expected)


def test_errors_of_correlated_inputs_are_taken_over_by_others() -> None:
    x, weight = correlated(32), torch.randn(8, 32, generator=torch.Generator().manual_seed(3))
    found = two_four(weight, x.T @ x / len(x))
    assert is_two_four(found) and not is_two_four(weight)
    lost = [float((x @ (one - weight).T).square().mean()) for one in (found, by_magnitude(weight))]
    assert lost[0] < 0.7 * lost[1]
    with pytest.raises(ValueError, match="multiple of 4 inputs, got 30"):
        two_four(weight[:, :30], torch.eye(30))


def test_a_sparse_model_is_nearer_than_one_cut_by_magnitude() -> None:
    model, pixels, tokens = small_model(), random_pixels(64), random_tokens(64)
    found = sparsified(sparsified(model, "image", [pixels]), "text", [tokens])
    assert all(is_two_four(linear.weight) for _, linear in found.linears())
    assert not any(is_two_four(linear.weight) for _, linear in model.linears()), "the model given is left alone"
    cut = small_model()
    with torch.no_grad():
        for _, linear in cut.linears():
            linear.weight.copy_(by_magnitude(linear.weight))
    unseen = random_pixels(32, seed=5), random_tokens(32, seed=5)
    dense = outputs(model, *unseen)
    assert (outputs(found, *unseen) - dense).norm() < 0.9 * (outputs(cut, *unseen) - dense).norm()


def test_training_and_rounding_keep_the_zeros() -> None:
    model = sparsified(small_model(), "image", [random_pixels(8)])
    names = [name for name, linear in model.linears() if is_two_four(linear.weight)]
    assert names and all(name.startswith("image.") for name in names)
    keep_zeros(model, names)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    before = {name: linear.weight.detach().clone() for name, linear in model.linears()}
    for _ in range(3):
        optimizer.zero_grad()
        model.encode_image(random_pixels(8)).square().sum(dim=0).max().backward()
        optimizer.step()
    after = dict(model.linears())
    assert all(torch.equal(after[name].weight == 0, before[name] == 0) for name in names)
    assert all(not torch.equal(after[name].weight, before[name]) for name in names)
    with pytest.raises(UsageError, match=r"text\.blocks\.0\.qkv is said to be 2:4 sparse and is not"):
        keep_zeros(model, ["text.blocks.0.qkv"])
    x, weight = correlated(32).numpy().astype(np.float64), before[names[0]][:, :32].numpy().T
    rounded = gptq(weight, np.abs(weight).max(axis=0) / 127, "signed", factor_of(x.T @ x / len(x)))
    assert ((rounded == 0) >= (weight == 0)).all()


def test_it_lasts_from_pruning_to_the_int8_graphs(tmp_path: Path) -> None:
    data, teacher = write_squares(tmp_path), write_teacher(tmp_path / "teacher")
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(f"""
[data]
train = "{data}"
[teacher]
source = "{teacher}"
[student]
source = "inherit:0.8"
[[stage]]
run = "embed"
[[stage]]
run = "distill"
optimizer = {{ steps = 2, batch = 20 }}
[[stage]]
run = "prune"
heads = 1.0
mlp = 1.0
towers = ["image"]
sparsity = "2:4"
samples = 40
batch = 20
[[stage]]
run = "distill"
name = "recover"
optimizer = {{ steps = 3, batch = 20, ema = 0.5 }}
[[stage]]
run = "quantize"
samples = 48
max_flips = 1
[[stage]]
run = "export"
precisions = ["fp32", "int8"]
""")
    made = run_recipe(load_recipe(recipe), tmp_path / "run")
    pruned, recovered, graphs = made["prune"], made["recover"], made["export"]
    sparse = pruned.manifest.facts["two_four"]
    assert sparse and all(name.startswith("image.") for name in sparse)
    assert all(name.startswith("text.") for name in pruned.manifest.facts["not_two_four"])
    assert pruned.model == made["distill"].model
    models = [dual_encoder_from_checkpoint(one.path, one.model) for one in (pruned, recovered)]
    first, second = (dict(model.linears())["image.blocks.0.fc1"].weight for model in models)
    assert torch.equal(first == 0, second == 0) and not torch.equal(first, second)
    for graph in graphs.manifest.graphs:
        expected = sparse if graph.tower == "image" else []
        assert two_four_weights(graphs.file(graph.file)) == expected, graph.file
