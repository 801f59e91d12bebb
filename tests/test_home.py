"""Homes that nobody knows: `~nouser/x` in every place of a command line, and a container without HOME."""

from __future__ import annotations

import pwd
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import mmcompress
from mmcompress.errors import UsageError
from mmcompress.home import expanded, is_known
from mmcompress.places import CACHE, cache_folder

Cli = Callable[..., Any]
NOBODY = "~no-such-user/x"


@pytest.mark.parametrize(
    "words",
    [
        ("inspect", NOBODY),
        ("classify", NOBODY, "{image}", "--labels", "cat,dog"),
        ("classify", "demo:teacher", NOBODY, "--labels", "cat,dog"),
        ("convert", NOBODY, "--out", "o"),
        ("embed", "--teacher", NOBODY, "--data", "demo:val", "--out", "o"),
        ("embed", "--teacher", f"{NOBODY}.py:f", "--data", "demo:val", "--out", "o"),
        ("embed", "--teacher", "demo:teacher", "--data", NOBODY, "--out", "o"),
        ("drift", "demo:teacher", "--data", "demo:val", "--labels", NOBODY, "--out", "o"),
        ("index", "demo:teacher", "--images", NOBODY, "--out", "o"),
        ("search", NOBODY, "cat"),
        ("search", "demo:teacher", "cat", "--images", NOBODY),
        ("data", "stats", NOBODY),
        ("data", "pack", NOBODY, "--out", "o"),
        ("data", "index", NOBODY),
        ("unpack", NOBODY, "--out", "o"),
        ("report", NOBODY, "--out", "o"),
        ("run", f"{NOBODY}.toml", "--out", "o"),
    ],
    ids=" ".join,
)
def test_a_home_that_nobody_knows_is_a_sentence(
    words: tuple[str, ...], cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (8, 8)).save("image.png")
    done = cli(*(word.format(image="image.png") for word in words))
    assert done.code in (2, 3, 4) and "~no-such-user" in done.err and "Traceback" not in done.err, done.err
    assert "hint: " in done.err
    assert [path.name for path in tmp_path.iterdir()] == ["image.png"]


def nobody(*_: object) -> None:
    raise KeyError("getpwuid(): uid not found")


def test_without_a_home_the_cache_says_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container that runs under a number: `docker run --user 12345`."""
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    for name in ("HOME", "XDG_CACHE_HOME", CACHE):
        monkeypatch.delenv(name, raising=False)
    assert expanded("~/x") == Path("~/x") and not is_known("~/x")
    with pytest.raises(UsageError, match="no such home folder, or HOME is not set") as told:
        cache_folder()
    assert CACHE in told.value.hint
    monkeypatch.setenv(CACHE, NOBODY)
    with pytest.raises(UsageError, match="no-such-user"):
        cache_folder()
    monkeypatch.setenv(CACHE, "/somewhere")
    assert cache_folder() == Path("/somewhere")
    monkeypatch.delenv(CACHE)
    monkeypatch.setenv("HOME", "/a/home")
    assert cache_folder() == Path("/a/home/.cache/mmcompress")


def test_nobody_else_asks_pathlib_for_homes() -> None:
    """It raises RuntimeError, which is no sentence."""
    package = Path(mmcompress.__file__).parent
    rooms = [package, *(folder for folder in package.iterdir() if folder.is_dir())]  # some are links
    texts = {path.name: path.read_text("utf-8") for room in rooms for path in room.rglob("*.py")}
    assert len(texts) > 200 and not [name for name, text in texts.items() if ".expanduser()" in text]
