"""Cached embeddings as whoever trains reads them: those of one teacher, or of several as one.

Several are kept apart and combined in every batch, so that their shares can change without embedding anything again.
Concatenated, the cosine of two samples is the mean of the teachers' cosines by their shares, whatever spaces they have
(as the embeddings of DataCompDR are, Vasu et al. 2024, MobileCLIP, section 4.2). Averaged, they stay as wide as they
are, which says something only of teachers that share a space: one that was tuned in several ways, say.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from pydantic import ValidationError
from torch import Tensor
from torch.nn import functional as F

from mmcompress.artifact import Artifact
from mmcompress.compress.train.augment import GIVEN
from mmcompress.compress.train.chunks import AGAIN, CONTENTS, Spread, Store
from mmcompress.compress.train.sentences import Sentences, read_sentences
from mmcompress.data.given import given_view
from mmcompress.data.views import Given
from mmcompress.errors import CorruptInputError
from mmcompress.frozen import Config
from mmcompress.manifest import Preprocessing
from mmcompress.wrong import first_wrong

MEMBERS = "members.json"


class Members(Config):
    """`members.json`: how the embeddings of several teachers become one; each lies in a folder of its number."""

    combine: Literal["concatenate", "average"]
    shares: tuple[float, ...]
    """Of each teacher; their sum is 1."""
    data: str | None
    """The fingerprint of the data that was embedded."""


@dataclass(frozen=True)
class Embeddings:
    """Embeddings of unit norm, looked up by the keys of samples."""

    stores: tuple[Store, ...]
    """One a teacher."""
    shares: tuple[float, ...]
    combine: Literal["concatenate", "average"]
    data: str | None
    """The fingerprint of the data that was embedded."""
    views: int
    augment: str
    seed: int
    dim: int
    """D, of all teachers together."""
    made_for: Preprocessing | None
    """How the images of the first teacher were prepared."""
    sentences: tuple[Sentences, ...] = ()
    """The user's own, as each teacher embedded them; none where images go with their captions."""

    def __len__(self) -> int:
        return len(self.stores[0])

    def has(self, key: str) -> bool:
        return all(store.has(key) for store in self.stores)

    def check(self, key: str, mark: bytes) -> None:
        """Raise CorruptInputError unless the sample is the one that was embedded under its key."""
        for store in self.stores:
            store.check(key, mark)

    def lookup(
        self, keys: Sequence[str], marks: Sequence[bytes], views: NDArray[np.int64], captions: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        """The images (B, D) in the given views and the texts (B, D) of the given captions, in FP32.

        Raises what `check` raises, and CorruptInputError that names a sample whose numbers are not finite.
        """
        found = [store.lookup(keys, marks, views, captions) for store in self.stores]
        return self._combined([images for images, _ in found]), self._combined([texts for _, texts in found])

    def beside(self, shares: NDArray[np.float32]) -> tuple[list[str], Tensor]:
        """The sentence that a number in [0, 1) falls on, for (B,) numbers, and the texts (B, D) of these."""
        said = self.sentences[0].said
        numbers = [int(share * len(said)) for share in shares]
        return [said[number] for number in numbers], self._combined([each.rows(numbers) for each in self.sentences])

    def given(self, size: int) -> Given | None:
        """What makes the views of an image, (size, size, 3), where somebody else chose them."""
        if self.augment != GIVEN or self.made_for is None:
            return None
        store, made_for = self.stores[0], self.made_for

        def made(key: str, view: int, image: Image.Image) -> NDArray[np.uint8]:
            return given_view(image, *store.given(key, view), made_for, size)

        return made

    def anchors(self, count: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Plain images (K, D) and texts (K', D), up to `count` different ones of each, evenly spaced over the data.

        The texts are of captions, or of the user's sentences where there are any.
        """
        found = [store.spread(2 * count) for store in self.stores]
        images, texts = (self._different([each[side] for each in found], count).to(device) for side in (0, 1))
        if self.sentences:
            texts = self._combined([each.spread(count) for each in self.sentences]).to(device)
        return images, texts

    def _different(self, found: Sequence[Spread], count: int) -> Tensor:
        if any(spread.keys != found[0].keys for spread in found):
            raise CorruptInputError(
                "the teachers did not embed the same samples", "embed one set of data with each, and combine these"
            )
        different: Tensor = self._combined([spread.values for spread in found]).unique(dim=0)
        return different[:count]

    def _combined(self, of_each: Sequence[Tensor]) -> Tensor:
        """(B, D) of each teacher -> (B, D) of unit norm."""
        return combined(of_each, self.shares, self.combine)


def combined(of_each: Sequence[Tensor], shares: Sequence[float], combine: str) -> Tensor:
    """(B, D_i) of each teacher i, of unit norm -> (B, D) of unit norm.

    Concatenated, sqrt(share_i) of each, so that the product of two rows is the sum of share_i cos_i.
    """
    if len(of_each) == 1:
        return of_each[0]
    if combine == "concatenate":
        return torch.cat([math.sqrt(share) * each for share, each in zip(shares, of_each, strict=True)], dim=1)
    weighted = [share * each for share, each in zip(shares, of_each, strict=True)]
    return F.normalize(torch.stack(weighted).sum(dim=0), dim=1)


def load_embeddings(artifact: Artifact) -> Embeddings:
    """The embeddings of an artifact, of which nothing is read yet but the list of its shards."""
    facts, files = artifact.manifest.facts, artifact.manifest.files
    if MEMBERS in files:
        members = _members_of(artifact)
        stores = tuple(Store(artifact.path / str(number)) for number in range(len(members.shares)))
    elif CONTENTS in files:
        data = artifact.manifest.parents.get("data.train")
        members, stores = Members(combine="concatenate", shares=(1.0,), data=data), (Store(artifact.path),)
    else:
        raise CorruptInputError(f"{artifact.path} has embeddings in the form of an earlier version", AGAIN)
    sentences = tuple(found for store in stores if (found := read_sentences(store.path)) is not None)
    return Embeddings(
        stores,
        members.shares,
        members.combine,
        members.data,
        facts["views"],
        facts["augment"],
        facts["seed"],
        facts["dim"],
        artifact.preprocessing,
        sentences,
    )


def _members_of(artifact: Artifact) -> Members:
    path = artifact.file(MEMBERS)
    try:
        return Members.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise CorruptInputError(f"{path}{first_wrong(error)}", AGAIN) from error
