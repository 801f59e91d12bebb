"""A step in parts, with blocks that are computed again, and compiled: the loss and gradients of a plain one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tiny_clip import config_of
from tiny_conv import conv_model, conv_pixels
from torch import Tensor

from mmcompress.compress import products
from mmcompress.compress.products import fast_products
from mmcompress.compress.train.computing import in_parts, set_up
from mmcompress.compress.train.losses import info_nce
from mmcompress.errors import MissingRequirementError, UsageError
from mmcompress.model import DualEncoder, initialize

PIXELS = torch.randn(7, 3, 32, 32, generator=torch.Generator().manual_seed(0))
TOKENS = torch.randint(1, 59, (7, 12), generator=torch.Generator().manual_seed(1))
TOKENS[:, -1] = 59


def model() -> DualEncoder:
    return initialize(DualEncoder(config_of()), 0)


def step(encoder: DualEncoder, parts: int = 1) -> tuple[Tensor, dict[str, Tensor], int]:
    """The loss of a batch against itself, its gradients, and the bytes that the backward pass kept of the forward."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    def unpack(tensor: Tensor) -> Tensor:
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        images = in_parts(encoder.encode_image, PIXELS, parts)
        texts = in_parts(encoder.encode_text, TOKENS, parts)
        loss = info_nce(images, texts, encoder.logit_scale, torch.eye(7, dtype=torch.bool))
    loss.backward()
    weights = {p.untyped_storage().data_ptr() for p in encoder.parameters()}
    gradients = {name: p.grad for name, p in encoder.named_parameters() if p.grad is not None}
    return loss.detach(), gradients, sum(size for place, size in kept.items() if place not in weights)


def check_same(found: tuple[Tensor, dict[str, Tensor], int], expected: tuple[Tensor, dict[str, Tensor], int]) -> None:
    torch.testing.assert_close(found[0], expected[0], atol=1e-6, rtol=1e-5)
    assert found[1].keys() == expected[1].keys() and len(found[1]) > 20
    for name, gradient in expected[1].items():
        near = 1e-5 * max(1.0, float(gradient.abs().max()))
        torch.testing.assert_close(found[1][name], gradient, atol=near, rtol=1e-4, msg=name)


def test_convolutions_are_computed_again_with_the_same_batch_norms() -> None:
    encoder, again = (conv_model().train() for _ in range(2))
    set_up(again, recompute=True, compiled=False)
    gradients = []
    for model in (encoder, again):
        model.encode_image(conv_pixels(6)).square().mul(torch.arange(16.0)).sum().backward()
        gradients.append({name: p.grad for name, p in model.image.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)
    with pytest.raises(UsageError, match="parts = 2 computes parts of a batch apart"):
        set_up(again, recompute=False, compiled=False, parts=2)


@pytest.mark.parametrize(
    ("parts", "recompute", "of_plain"), [(3, False, 0.2), (1, True, 0.6), (7, True, 0.2), (99, False, 0.2)]
)
def test_less_is_kept_and_nothing_else_changes(parts: int, recompute: bool, of_plain: float) -> None:
    encoder = model()
    set_up(encoder, recompute, compiled=False)
    found, plain = step(encoder, parts), step(model())
    check_same(found, plain)
    assert found[2] < of_plain * plain[2]


@pytest.mark.skipif(not hasattr(torch.ops.mkldnn, "_linear_pointwise"), reason="this build of torch has no oneDNN")
@pytest.mark.parametrize(("parts", "recompute"), [(3, False), (1, True)])
def test_what_is_computed_again_is_multiplied_as_before(
    parts: int, recompute: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = step(model())
    monkeypatch.setattr(products, "slow_mkl", lambda: True)
    encoder = model()
    set_up(encoder, recompute, compiled=False)
    with fast_products():
        images, texts = in_parts(encoder.encode_image, PIXELS, parts), in_parts(encoder.encode_text, TOKENS, parts)
        info_nce(images, texts, encoder.logit_scale, torch.eye(7, dtype=torch.bool)).backward()
    gradients = {name: p.grad for name, p in encoder.named_parameters() if p.grad is not None}
    check_same((plain[0], gradients, 0), plain)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # torch's, of itself
def test_compiled_towers_give_the_same() -> None:
    encoder = model()
    set_up(encoder, recompute=False, compiled=True)
    check_same(step(encoder), step(model()))


def test_no_compiler_is_a_missing_requirement(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        raise RuntimeError("no C++ compiler found")

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(MissingRequirementError, match="does not work here: no C"):
        set_up(model(), recompute=False, compiled=True)
