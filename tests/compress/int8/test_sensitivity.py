"""The fewest Linears that stay in float, and the ranking that they are taken from."""

from __future__ import annotations

import numpy as np
import torch
from tiny_encoder import captioned, encoder

from mmcompress.compress.int8.fit import plain
from mmcompress.compress.int8.quantize import calibrate
from mmcompress.compress.int8.ranges import ranges_of
from mmcompress.compress.int8.samples import feeds
from mmcompress.compress.int8.sensitivity import cost, fewest_kept, sensitivities
from mmcompress.compress.int8.simulate import TOWERS, distance, embedded
from mmcompress.int8 import fake_quantize_weight


def test_nothing_is_kept_where_the_budget_holds() -> None:
    assert fewest_kept(["a", "b"], lambda kept: True) == frozenset()


def test_the_worst_are_kept_until_the_budget_holds_and_no_more() -> None:
    assert fewest_kept(["a", "b", "c", "d"], lambda kept: {"a", "b"} <= kept) == {"a", "b"}
    assert fewest_kept(["a", "b", "c", "d"], lambda kept: "c" in kept) == {"c"}, "a and b turned out not to be needed"
    assert fewest_kept(["a", "b"], lambda kept: False) == {"a", "b"}


def test_without_any_one_of_the_kept_the_budget_breaks() -> None:
    """On random additive errors, against every smaller set by one."""
    for seed in range(20):
        errors = dict(zip("abcdefgh", np.random.default_rng(seed).exponential(size=8), strict=True))
        ranking = sorted(errors, key=lambda name: -errors[name])

        def holds(kept: frozenset[str], errors: dict[str, float] = errors) -> bool:
            return sum(error for name, error in errors.items() if name not in kept) <= 2.0

        kept = fewest_kept(ranking, holds)
        assert holds(kept) and not any(holds(kept - {name}) for name in kept)


def test_the_ranking_finds_the_linear_that_was_made_bad() -> None:
    model, pairs = encoder(), captioned()
    ranges = {name: ranges_of(found, "minmax", 100) for name, found in calibrate(model, pairs)[0].items()}
    ranges["text.blocks.1.fc1"] = {name: 0.1 * value for name, value in ranges["text.blocks.1.fc1"].items()}
    linears = plain(model, "image", "unsigned") | plain(model, "text", "unsigned")
    ranking = sensitivities(model, feeds(pairs), linears, ranges, "unsigned")
    assert next(iter(ranking)) == "text.blocks.1.fc1" and set(ranking) == set(linears)
    assert list(ranking.values()) == sorted(ranking.values(), reverse=True)
    weight = model.text.blocks[1].fc1.weight
    assert not np.allclose(
        fake_quantize_weight(weight.detach().numpy().T, "unsigned"), weight.detach().numpy().T, atol=0
    )


def test_only_hits_that_are_lost_count() -> None:
    rng = torch.Generator().manual_seed(0)
    texts = torch.nn.functional.normalize(torch.randn(40, 64, generator=rng), dim=1)
    assert cost((texts, texts), (texts, texts)).r10_lost == 0
    broken = texts.clone()
    broken[:4] = -texts[:4]
    lost = cost((texts, texts), (broken, texts)).r10_lost
    assert lost >= 8 / 80, "four images lost their text, and four texts their image"
    assert cost((broken, texts), (texts, texts)).r10_lost == 0, "gains do not count"


def test_distance_is_one_minus_cosine() -> None:
    model, pairs = encoder(), captioned(2)
    for tower in TOWERS:
        first, second = (embedded(model, tower, feeds([one]).of(tower)) for one in pairs)
        assert abs(distance(first, second) - float(1 - (first * second).sum(dim=1).mean())) < 1e-6


def test_an_image_flips_where_its_answer_is_another_caption_and_not_the_same_one_twice() -> None:
    texts = torch.eye(4)[[0, 1, 2, 0]]
    before = torch.eye(4)[[0, 1, 2, 3]] + torch.tensor([1e-3, 0, 0, 0])
    after = before.clone()
    after[0] = torch.tensor([0.0, 1.0, 0.0, 0.0])
    assert cost((before, texts), (before, texts)).flips == 0
    assert cost((before, texts), (after, texts)).flips == 0.25
    twice = texts.clone()
    twice[3, 0] += 1e-7
    assert cost((before, texts), (before, twice)).flips == 0, "texts 0 and 3 are one caption"
    assert cost((before, texts), (before, texts.roll(1, dims=0))).flips == 0.5, "the text tower counts too"
