"""The fewest Linears that stay in float, and the ranking that they are taken from."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_encoder import captioned, encoder

from mmcompress.budget import Cost
from mmcompress.compress.int8 import sensitivity
from mmcompress.compress.int8.fit import plain
from mmcompress.compress.int8.quantize import calibrate
from mmcompress.compress.int8.ranges import ranges_of
from mmcompress.compress.int8.samples import feeds
from mmcompress.compress.int8.sensitivity import PRECISION, SPARED, cost, fewest_kept, kept_in_float, sensitivities
from mmcompress.compress.int8.simulate import TOWERS, distance, embedded
from mmcompress.config import DataConfig, QuantizeConfig
from mmcompress.int8 import fake_quantize_weight
from mmcompress.measure.sanity import above_chance

OWN = torch.eye(64)
LIKE = dict.fromkeys("abcd", 1.0)


def share(fits: bool) -> float:
    return 0.5 if fits else 2.0


@pytest.mark.parametrize("answers", [True, False])
def test_of_a_model_that_answers_by_chance_nothing_is_kept_for_what_it_loses(
    answers: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "pairs.tar").touch()
    data = DataConfig(train=str(tmp_path / "pairs.tar"))
    config = QuantizeConfig(data=data, keep=("text.a",), max_drop=0.0, max_flips=0.0)
    drifts = {"image.a": 2.0, "image.b": 1.0}
    monkeypatch.setattr(sensitivity, "above_chance", above_chance)
    texts = OWN if answers else OWN[torch.randperm(64, generator=torch.Generator().manual_seed(0))]

    def embeddings(tower: str, kept: frozenset[str]) -> torch.Tensor:
        if tower == "text":
            return texts
        return OWN if "image.a" in kept else OWN.roll(32, 0)

    kept, left = kept_in_float(embeddings, (*drifts, "text.a"), lambda: drifts, config)
    assert kept == ({"image.a", "text.a"} if answers else {"text.a"})
    assert left == (Cost(0.0, 0.0) if answers else None)
    assert ("no oftener than chance" in " ".join(capsys.readouterr().err.split())) is not answers


def test_nothing_is_kept_where_the_budget_holds() -> None:
    assert fewest_kept(LIKE, lambda kept: 1.0) == frozenset()


def test_the_worst_are_kept_until_the_budget_holds_and_no_more() -> None:
    assert fewest_kept(LIKE, lambda kept: share({"a", "b"} <= kept)) == {"a", "b"}
    assert fewest_kept(LIKE, lambda kept: share("c" in kept)) == {"c"}, "a and b turned out not to be needed"
    assert fewest_kept(LIKE, lambda kept: math.inf) == set("abcd")


def test_without_any_one_of_the_kept_the_budget_breaks() -> None:
    """On random additive errors, against every smaller set by one."""
    for seed in range(20):
        errors = dict(zip("abcdefgh", np.random.default_rng(seed).exponential(size=8), strict=True))
        drifts = dict(sorted(errors.items(), key=lambda item: -item[1]))

        def used(kept: frozenset[str], errors: dict[str, float] = errors) -> float:
            return math.sqrt(sum(error for name, error in errors.items() if name not in kept) / 2.0)

        kept = fewest_kept(drifts, used)
        assert used(kept) <= 1 and not any(used(kept - {name}) <= 1 for name in kept)


@pytest.mark.parametrize("needed", [0, 1, 3, 20, 60, 95, 96])
def test_few_sets_are_tried_however_many_are_needed(needed: int) -> None:
    """Counted on errors that add up as they are said to, and on some that do not."""
    drifts = {f"{number:02d}": 1 / (1 + number) for number in range(96)}
    bearable = sum(list(drifts.values())[needed:])
    for power in (0.5, 0.3, 2.0):
        tried = []

        def used(kept: frozenset[str], power: float = power, tried: list[frozenset[str]] = tried) -> float:
            tried.append(kept)
            left = sum(error for name, error in drifts.items() if name not in kept)
            return (left / bearable) ** power if bearable else 1e6 * left

        kept = fewest_kept(drifts, used)
        assert kept == frozenset(list(drifts)[: len(kept)]) and needed <= len(kept) <= needed + len(kept) // PRECISION
        assert len(tried) <= (SPARED if needed in (1, 3) else 0) + 10


def test_the_ranking_finds_the_linear_that_was_made_bad() -> None:
    model, pairs = encoder(), captioned()
    ranges = {name: ranges_of(found, "minmax", 100) for name, found in calibrate(model, pairs).histograms.items()}
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
