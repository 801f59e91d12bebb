"""Which of equal scores torch.topk takes, without torch, so that recall equals CLIP_benchmark's also on ties.

Recall at k asks whether a match is among the k best. Where several candidates share the score at the border, that
depends on which of them the sort happens to keep. CLIP_benchmark takes `torch.topk`, which on a CPU is C++'s
`std::partial_sort` (from 64 k candidates on) or `std::nth_element`, as libstdc++ writes them. Both are deterministic,
neither is stable, and both look at positions only, never at what is right: a collapsed model, whose scores are all
equal, gets what chance gets.

So the two are spelled here as libstdc++ does it, step by step (bits/stl_algo.h, bits/stl_heap.h). Compared with torch
2.13 on x86-64 they agree to the order, see tests/runtime/test_ties.py. They run for the few rows in which a tie decides
(see retrieval.py), so their speed hardly matters. Left out: the heap sort that `nth_element` falls back to after
2 log2(n) bad pivots, which needs an adversary; then the k best are taken by a stable sort.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_PARTIAL = 64
"""torch takes partial_sort where k times this is at most the number of candidates."""


def torch_topk(scores: NDArray[np.floating[Any]], k: int) -> list[int]:
    """(C,) -> indices of the k largest, k <= 17, in the order of `torch.topk(scores, k)` on a CPU."""
    keys: list[float] = scores.tolist()
    if not 1 <= k <= len(keys):
        raise ValueError(f"k is {k} for {len(keys)} scores")
    return _partial_sort(keys, k) if k * _PARTIAL <= len(keys) else _nth_element(keys, k)


def _partial_sort(keys: list[float], k: int) -> list[int]:
    """Keep the first k on a heap whose top is the smallest; what is larger than the top replaces it."""
    heap = list(range(k))
    for parent in range((k - 2) // 2, -1, -1):
        _sift(heap, keys, parent, k, heap[parent])
    for index in range(k, len(keys)):
        if keys[index] > keys[heap[0]]:
            _sift(heap, keys, 0, k, index)
    for last in range(k - 1, 0, -1):
        value, heap[last] = heap[last], heap[0]
        _sift(heap, keys, 0, last, value)
    return heap


def _sift(heap: list[int], keys: list[float], hole: int, length: int, value: int) -> None:
    """`__adjust_heap`: move the hole down to a leaf along the smaller children, then the value up from there."""
    start = child = hole
    while child < (length - 1) // 2:
        child = 2 * (child + 1)
        if keys[heap[child]] > keys[heap[child - 1]]:
            child -= 1
        heap[hole], hole = heap[child], child
    if length % 2 == 0 and child == (length - 2) // 2:
        child = 2 * child + 1
        heap[hole], hole = heap[child], child
    while hole > start and keys[heap[(hole - 1) // 2]] > keys[value]:
        heap[hole], hole = heap[(hole - 1) // 2], (hole - 1) // 2
    heap[hole] = value


def _nth_element(keys: list[float], k: int) -> list[int]:
    """`__introselect` for place k - 1, then `std::sort` of what lies before it, which is an insertion sort to 16."""
    order, first, last = list(range(len(keys))), 0, len(keys)
    for _ in range(2 * (len(keys).bit_length() - 1) + 1):
        if last - first <= 3:
            _insertion_sort(order, keys, first, last)
            _insertion_sort(order, keys, 0, k - 1)
            return order[:k]
        cut = _partition(order, keys, first, last)
        first, last = (cut, last) if cut < k else (first, cut)
    return sorted(range(len(keys)), key=lambda index: -keys[index])[:k]


def _partition(order: list[int], keys: list[float], first: int, last: int) -> int:
    """`__unguarded_partition_pivot`: the median of the second, the middle and the last is the pivot."""
    second, middle, end = first + 1, first + (last - first) // 2, last - 1
    a, b, c = keys[order[second]], keys[order[middle]], keys[order[end]]
    pivot = sorted(((a, second), (b, middle), (c, end)), key=lambda pair: pair[0])[1][1]
    order[first], order[pivot] = order[pivot], order[first]
    value, left, right = keys[order[first]], first + 1, last
    while True:
        while keys[order[left]] > value:
            left += 1
        right -= 1
        while value > keys[order[right]]:
            right -= 1
        if left >= right:
            return left
        order[left], order[right] = order[right], order[left]
        left += 1


def _insertion_sort(order: list[int], keys: list[float], first: int, last: int) -> None:
    """`__insertion_sort` is stable, as sorting by the key alone is."""
    order[first:last] = sorted(order[first:last], key=lambda index: -keys[index])
