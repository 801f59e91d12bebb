"""A folder that is swapped in whole: at any moment a place holds the old artifact, nothing, or the new one."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from mmcompress.places import why_not_ours


def tidy(path: Path) -> None:
    """Remove what a killed process left beside a place: its draft, and the artifact that it had moved aside.

    That one is put back where the new one does not stand yet. The caller holds the place's lock.
    """
    shutil.rmtree(draft_of(path), ignore_errors=True)
    aside = aside_of(path)
    if not aside.is_dir() or why_not_ours(aside):
        return
    if path.exists():
        shutil.rmtree(aside)
    else:
        aside.rename(path)


def draft_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.tmp")


def aside_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.old")


def swap_in(temporary: Path, path: Path) -> None:
    """Sync the folder, then swap it in: at any moment `path` is the old artifact, nothing, or the new one."""
    for item in temporary.rglob("*"):
        _sync(item)
    _sync(temporary)
    if path.exists():
        aside = aside_of(path)
        path.rename(aside)
        try:
            temporary.rename(path)
        except OSError:
            aside.rename(path)
            raise
        shutil.rmtree(aside)
    else:
        temporary.rename(path)
    _sync(path.parent)


def _sync(path: Path) -> None:
    if os.name == "nt" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
