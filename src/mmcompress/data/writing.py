"""Samples into WebDataset shards: the same bytes for the same samples, whoever writes them, and images as they are.

A sample is `000000012.jpg`, a `.txt` with its first caption, which every reader of such shards knows, and a `.json`
with all captions, label and origin. Headers are plain ones (POSIX.1-1988 ustar) of time 0, which `shards.py` reads by
hand.
"""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from types import TracebackType
from typing import Any

from typing_extensions import Self

from mmcompress.data.sample import Sample
from mmcompress.strictjson import text_from_json

A_SHARD = 10_000
"""Samples in a shard."""
_BEGINS = {b"\xff\xd8": "jpg", b"\x89P": "png", b"RI": "webp"}
"""How an image file of each kind begins."""


class ShardWriter:
    """Writes `00000.tar`, `00001.tar`, … into a folder; a context, at whose end the last one is whole."""

    def __init__(self, folder: Path, a_shard: int = A_SHARD) -> None:
        self._folder, self._a_shard = folder, a_shard
        self._tar: tarfile.TarFile | None = None
        self.samples = self.captions = 0

    @property
    def shards(self) -> int:
        return -(-self.samples // self._a_shard)

    def add(self, sample: Sample, origin: str) -> None:
        """The next sample; `origin` is where it was, by a path or a key."""
        if self.samples % self._a_shard == 0:
            self._end()
            place = self._folder / f"{self.samples // self._a_shard:05d}.tar"
            self._tar = tarfile.open(place, "w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115  # until the next one
        about: dict[str, Any] = {"captions": list(sample.captions), "origin": origin}
        if sample.label is not None:
            about["label"] = sample.label
        if not sample.seen:
            about["seen"] = False
        key = f"{self.samples:09d}"
        self._file(f"{key}.{_BEGINS[sample.image[:2]]}", sample.image)
        self._file(f"{key}.txt", sample.captions[0].encode())
        self._file(f"{key}.json", text_from_json(about, compact=True).encode())
        self.samples += 1
        self.captions += len(sample.captions)

    def _file(self, name: str, content: bytes) -> None:
        assert self._tar is not None
        info = tarfile.TarInfo(name)
        info.size = len(content)
        self._tar.addfile(info, io.BytesIO(content))
        self._tar.members = []  # type: ignore[attr-defined]  # tarfile would keep every header

    def _end(self) -> None:
        if self._tar is not None:
            self._tar.close()
            self._tar = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()
