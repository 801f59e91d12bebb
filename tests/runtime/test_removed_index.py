"""An index that goes while it is searched."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmcompress.errors import CorruptInputError
from mmcompress.runtime.neighbours import array_of
from mmcompress.strictjson import read_json


@pytest.mark.parametrize("read", [array_of, lambda path: read_json(path, "make it again")])
def test_a_file_that_was_removed_is_a_sentence(tmp_path: Path, read: object) -> None:
    assert callable(read)
    with pytest.raises(CorruptInputError, match="names-000000 is missing, or was removed while it was being read"):
        read(tmp_path / "names-000000")
