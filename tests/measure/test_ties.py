"""torch.topk's choice among equal scores, against torch itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mmcompress.measure.ties import torch_topk


@pytest.mark.parametrize("candidates", [1, 2, 3, 4, 5, 17, 63, 64, 200, 319, 320, 640, 1500])
@pytest.mark.parametrize("k", [1, 2, 5, 10])
def test_order_equals_torch_topk(candidates: int, k: int) -> None:
    k = min(k, candidates)
    rng = np.random.default_rng(candidates * 100 + k)
    for values in (1, 2, 7, 40, 100_000):
        scores = rng.integers(0, values, (12, candidates)).astype(np.float32)
        expected = torch.topk(torch.from_numpy(scores), k, dim=1)[1].tolist()
        assert [torch_topk(row, k) for row in scores] == expected, values


def test_sorted_and_reversed_rows_equal_torch_topk() -> None:
    rows = np.stack([np.arange(500.0) // 7, -(np.arange(500.0) // 3), np.abs(np.arange(500.0) - 250) // 4])
    for k in (3, 10):
        assert [torch_topk(row, k) for row in rows] == torch.topk(torch.from_numpy(rows), k, dim=1)[1].tolist()


def test_k_must_fit() -> None:
    with pytest.raises(ValueError, match="k is 4 for 3 scores"):
        torch_topk(np.zeros(3), 4)
