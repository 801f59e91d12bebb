"""An sdist as the same bytes whoever builds it: members by name, of one time and nobody's, and no time in the gzip.

    SOURCE_DATE_EPOCH=1700000000 python tests/plain_sdist.py dist/*.tar.gz

setuptools takes SOURCE_DATE_EPOCH for wheels, and for sdists the times of the checkout.
"""

from __future__ import annotations

import gzip
import io
import os
import sys
import tarfile
from pathlib import Path


def plain(content: bytes, epoch: int) -> bytes:
    """The gzipped tar of the same files."""
    made = io.BytesIO()
    with (
        tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as source,
        gzip.GzipFile(fileobj=made, mode="wb", filename="", mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as target,
    ):
        for member in sorted(source.getmembers(), key=lambda member: member.name):
            file = source.extractfile(member) if member.isreg() else None
            member.mtime, member.uid, member.gid, member.uname, member.gname = epoch, 0, 0, "", ""
            member.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
            member.pax_headers = {}
            target.addfile(member, file)
    return made.getvalue()


if __name__ == "__main__":
    for path in map(Path, sys.argv[1:]):
        path.write_bytes(plain(path.read_bytes(), int(os.environ["SOURCE_DATE_EPOCH"])))
