"""A folder as a web server has it, and what of npm is fetched once for all tests."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from mmcompress.errors import MissingRequirementError
from mmcompress.places import cache_folder
from mmcompress.report.page import npm


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of a folder while it is served as `python -m http.server` does."""
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()


def fetch_packages(factory: pytest.TempPathFactory) -> None:
    """Into the cache of the tests, once for all workers of a run; skips where no registry answers."""
    base = factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    try:
        for package in npm.PACKAGES:
            place, kept = cache_folder() / "npm" / package.archive, shared / package.archive
            if kept.is_file():
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(kept, place)
            elif npm.archive_of(package) == place:
                draft = shared / f"{package.archive}.{os.getpid()}"
                shutil.copyfile(place, draft)
                draft.replace(kept)
    except MissingRequirementError as error:
        pytest.skip(error.what)
