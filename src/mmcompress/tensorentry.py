"""Entries of the tables of names: some of our tensors, some of a file's, and how the ones become the others."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmcompress.errors import CorruptInputError

Array = Any
"""A torch tensor or a numpy array."""
Shape = tuple[int | str, ...]
"""A letter stands for a size that the config does not fix, the same wherever it stands in an entry."""


@dataclass(frozen=True)
class Entry:
    """Some of our tensors and some of theirs that hold the same."""

    ours: tuple[str, ...]
    theirs: Mapping[str, Shape]
    read: Callable[..., Sequence[Array]]
    """Theirs, one by one -> ours."""
    write: Callable[..., Sequence[Array]]
    """Ours -> theirs."""


def read_entries(entries: Iterable[Entry], tensors: Mapping[str, Array], where: str) -> dict[str, Array]:
    """Our tensors. Raises CorruptInputError for the first of theirs that is missing or misshapen."""
    state: dict[str, Array] = {}
    for entry in entries:
        sizes: dict[str, int] = {}
        for name, shape in entry.theirs.items():
            _check(tensors, name, shape, sizes, where)
        state.update(zip(entry.ours, entry.read(*(tensors[name] for name in entry.theirs)), strict=True))
    return state


def same(ours: str, theirs: str, *shape: int) -> Entry:
    """One tensor that only has another name."""
    return Entry((ours,), {theirs: shape}, lambda x: (x,), lambda x: (x,))


def _check(tensors: Mapping[str, Array], name: str, shape: Shape, sizes: dict[str, int], where: str) -> None:
    hint = "the weights do not belong to this config"
    if name not in tensors:
        raise CorruptInputError(f"{where}: tensor {name!r} is missing", hint)
    found = tuple(tensors[name].shape)
    if len(found) == len(shape):
        for size, wanted in zip(found, shape, strict=True):
            if isinstance(wanted, str):
                sizes.setdefault(wanted, size)
    expected = tuple(sizes.get(size, size) if isinstance(size, str) else size for size in shape)
    if found != expected:
        raise CorruptInputError(f"{where}: tensor {name!r} has shape {found}, expected {expected}", hint)
