"""The models of these tests have random weights; what they cost is judged all the same, as of a model that answers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from mmcompress.compress.int8 import sensitivity


@pytest.fixture(scope="module", autouse=True)
def better_than_chance() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sensitivity, "above_chance", lambda *_: (1.0, 0.5))
        yield
