"""What a shell is told when it asks for completions, by the words that bash sends."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def completed(cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Callable[[str], list[str]]:
    """What may stand in place of the last word of a line."""

    def ask(line: str) -> list[str]:
        monkeypatch.setenv("_MMCOMPRESS_COMPLETE", "complete_bash")
        monkeypatch.setenv("COMP_WORDS", line)
        monkeypatch.setenv("COMP_CWORD", str(len(line.split(" ")) - 1))
        done = cli()
        assert done.code == 0 and done.err == ""
        found: list[str] = done.out.split()
        return found

    return ask


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("mmcompress qua", ["quantize"]),
        ("mmcompress data de", ["dedupe"]),
        ("mmcompress quantize vit-l", ["vit-l14", "vit-l14-336"]),
        ("mmcompress bench siglip2-s", ["siglip2-so400m"]),
        ("mmcompress distill --teacher chinese", ["chinese-clip-b16", "chinese-clip-l14"]),
        ("mmcompress distill --student mnv4-s", ["mnv4-s-64", "mnv4-s"]),
        ("mmcompress run it", ["iterative"]),
        ("mmcompress verdict --backend open", ["openvino"]),
        ("mmcompress export --precision int", ["int8"]),
        ("mmcompress prune --set mlp_m", ["mlp_multiple="]),
        ("mmcompress run demo --set prune.mlp_m", ["prune.mlp_multiple="]),
        ("mmcompress run demo --set bisect.b", ["bisect.backend=", "bisect.batch="]),
        ("mmcompress quantize nothing-like-it", []),
    ],
)
def test_words(completed: Callable[[str], list[str]], line: str, found: list[str]) -> None:
    assert completed(line) == found


def test_artifacts_are_the_folders_with_a_manifest(
    completed: Callable[[str], list[str]],
    make_artifact: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    place: Path = make_artifact("student").path.parent
    (place / "studies").mkdir()
    monkeypatch.chdir(place)
    assert completed("mmcompress export st") == ["student"]
    assert completed(f"mmcompress export {place}/stu") == [f"{place}/student"]
    assert completed("mmcompress export nowhere/") == []


def test_asking_imports_no_torch() -> None:
    """A shell asks at every press of a key."""
    code = (
        "import os, sys; os.environ |= {'_MMCOMPRESS_COMPLETE': 'complete_bash', 'COMP_CWORD': '3',"
        " 'COMP_WORDS': 'mmcompress distill --student '}\n"
        "from mmcompress.cli.main import main\n"
        "try:\n    main()\nfinally:\n    assert not {'torch', 'transformers', 'numpy'} & sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and "vit-s16" in done.stdout.split(), done.stderr


def test_the_line_that_installs_it_is_there(cli: Callable[..., Any]) -> None:
    assert "--install-completion" in cli("--help").out
