"""Linears by oneDNN against those that torch takes itself, whichever CPU this is."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from mmcompress.compress import products
from mmcompress.compress.products import fast_products, inferring, product


@pytest.fixture(params=[True, False])
def slow(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[bool]:
    if request.param and not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        pytest.skip("this build of torch has no oneDNN")
    monkeypatch.setattr(products, "slow_mkl", lambda: request.param)
    yield request.param


def test_linears_answer_what_they_answer_outside(slow: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    called = []
    by_onednn = products._by_onednn
    monkeypatch.setattr(products, "_by_onednn", lambda *args: (called.append(1), by_onednn(*args))[1])
    torch.manual_seed(0)
    for bias in (True, False):
        linear = nn.Linear(48, 32, bias=bias)
        for x in (torch.randn(5, 7, 48), torch.randn(9, 48), torch.randn(48, 9).T, torch.randn(0, 48)):
            expected = linear(x)
            with inferring():
                found = linear(x)
            torch.testing.assert_close(found, expected.detach())
            assert not found.requires_grad and found.is_inference()
    assert len(called) == (4 if slow else 0), "what lies otherwise in memory, or is empty, is left to torch"


def test_what_is_no_float32_is_left_to_torch(slow: bool) -> None:
    linear, x = nn.Linear(16, 8).double(), torch.randn(3, 16, dtype=torch.float64)
    with inferring():
        assert linear(x).dtype == torch.float64


def test_products_of_rows(slow: bool) -> None:
    a, b = torch.randn(24, 40), torch.randn(40, 16)
    torch.testing.assert_close(product(a, b.T), a @ b)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(5, 7, 48), (9, 48), (48,)])
def test_gradients_are_those_outside(slow: bool, bias: bool, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    linear, x = nn.Linear(48, 32, bias=bias), torch.randn(shape, requires_grad=True)
    wanted = [x, *linear.parameters()]
    expected = torch.autograd.grad(linear(x).square().sum(), wanted)
    with fast_products():
        found = torch.autograd.grad(linear(x).square().sum(), wanted)
        linear.weight.requires_grad_(False)
        alone = torch.autograd.grad(linear(x).square().sum(), x)[0]
    for one, other in zip((*found, alone), (*expected, expected[0]), strict=True):
        torch.testing.assert_close(one, other)
