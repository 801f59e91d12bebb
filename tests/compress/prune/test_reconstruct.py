"""Least squares and the order of removal, against numpy's solver, brute force, and units that are known to be spare."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mmcompress.compress.prune.reconstruct import Gram, refit, removal_order

NO_RIDGE = 1e-12


def samples(rows: int = 400, inputs: int = 12, outputs: int = 5, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Correlated inputs with a mean, and outputs that follow them with noise, in float64."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    x = normal(rows, inputs) @ normal(inputs, inputs) + normal(inputs)
    return x, x @ normal(inputs, outputs) + 0.3 * normal(rows, outputs) + normal(outputs)


def gram_of(x: Tensor, y: Tensor, weight: Tensor | None = None) -> Gram:
    gram = Gram(x.shape[-1], y.shape[-1])
    gram.add(x, y, weight)
    return gram


def left_over(x: Tensor, y: Tensor, kept: list[int]) -> float:
    """Summed squared residual of numpy.linalg.lstsq on the kept inputs and a constant."""
    a = np.concatenate([x[:, kept].numpy(), np.ones((len(x), 1))], axis=1)
    solution = np.linalg.lstsq(a, y.numpy(), rcond=None)[0]
    return float(((a @ solution - y.numpy()) ** 2).sum())


def test_refit_equals_numpys_least_squares() -> None:
    x, y = samples()
    kept = torch.tensor([0, 3, 4, 9])
    weight, bias = refit(gram_of(x, y), kept, torch.zeros(5, 4).double(), torch.zeros(5).double(), NO_RIDGE)
    a = np.concatenate([x[:, kept].numpy(), np.ones((len(x), 1))], axis=1)
    expected = np.linalg.lstsq(a, y.numpy(), rcond=None)[0]
    np.testing.assert_allclose(weight.T.numpy(), expected[:-1], atol=1e-8)
    np.testing.assert_allclose(bias.numpy(), expected[-1], atol=1e-8)


def test_a_weight_of_zero_leaves_a_row_out() -> None:
    x, y = samples()
    counts = (torch.arange(len(x)) % 3 > 0).double()
    some, all_of_some = gram_of(x, y, counts), gram_of(x[counts > 0], y[counts > 0])
    torch.testing.assert_close(some.xx, all_of_some.xx)
    torch.testing.assert_close(some.xy, all_of_some.xy)


def test_streaming_equals_one_pass_and_takes_no_memory_for_samples() -> None:
    x, y = samples(1000)
    whole, streamed = gram_of(x, y), Gram(12, 5)
    sizes = set()
    for rows in torch.arange(1000).split(64):
        streamed.add(x[rows], y[rows])
        sizes.add(streamed.xx.numel() + streamed.xy.numel())
    torch.testing.assert_close(streamed.xx, whole.xx)
    torch.testing.assert_close(streamed.xy, whole.xy)
    assert sizes == {13 * 13 + 13 * 5}


def test_a_strong_ridge_keeps_the_weights_as_they_were() -> None:
    x, y = samples()
    before = torch.ones(5, 2).double()
    weight, _ = refit(gram_of(x, y), torch.tensor([1, 2]), before, torch.zeros(5).double(), 1e9)
    torch.testing.assert_close(weight, before, atol=1e-5, rtol=0)


def test_a_units_copy_goes_first_and_costs_nothing() -> None:
    x, y = samples()
    doubled = torch.cat([x, x[:, 6:7]], dim=1)  # unit 12 is unit 6 again
    gram = gram_of(doubled, y)
    order = removal_order(gram, 1, NO_RIDGE)
    assert order[0] in (6, 12) and order[1] not in (6, 12)
    kept = [index for index in range(13) if index != order[0]]
    weight, bias = refit(gram, torch.tensor(kept), torch.zeros(5, 12).double(), torch.zeros(5).double(), NO_RIDGE)
    fitted = doubled[:, kept] @ weight.T + bias
    residual = float(((fitted - y) ** 2).sum())
    assert abs(residual - left_over(x, y, list(range(12)))) < 1e-6


def test_every_removal_is_the_cheapest_by_brute_force() -> None:
    """Greedy elimination with a full least squares for every candidate, in groups of three inputs."""
    x, y = samples()
    found = removal_order(gram_of(x, y), 3, NO_RIDGE)
    alive = list(range(4))
    for removed in found:
        rests = {g: [i for i in range(12) if i // 3 in alive and i // 3 != g] for g in alive}
        cheapest = min(alive, key=lambda g, rests=rests: left_over(x, y, rests[g]))
        assert removed == cheapest
        alive.remove(removed)


def test_of_those_that_are_kept_no_order_is_looked_for() -> None:
    """A round removes two of 300 units: a number that is not even ends within one."""
    x, y = samples(rows=900, inputs=300, seed=3)
    gram = gram_of(x, y)
    whole = removal_order(gram, 1)
    for kept in (0, 99, 150, 299, 300):
        some = removal_order(gram, 1, kept=kept)
        assert some[: 300 - kept] == whole[: 300 - kept] and sorted(some) == list(range(300))


def test_constant_inputs_do_not_break_it() -> None:
    x, y = samples()
    x[:, 4] = 2.0  # a unit that is always the same is a bias
    order = removal_order(gram_of(x, y), 1)
    assert order[0] == 4 and sorted(order) == list(range(12))
