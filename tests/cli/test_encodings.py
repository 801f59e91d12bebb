"""What is printed where the terminal's encoding has not every character of a file's name or a label."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

SHOWN = """
from mmcompress.cli import console, show_use
from mmcompress.cli.streams import never_failing
from mmcompress.pipeline.searching import Found
never_failing()
found = Found([("caf\\udce9.jpg", 0.9), ("\u043a\u043e\u0442 \U0001f600 \u00e9.jpg", 0.8)])
console.show(*show_use.matches_summary(found), {as_json})
"""


@pytest.mark.parametrize("encoding", ["ascii:strict", "utf-8:strict", "latin-1:strict"])
@pytest.mark.parametrize("as_json", [True, False])
def test_a_name_that_the_encoding_lacks_is_escaped(encoding: str, as_json: bool) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    code = [sys.executable, "-c", SHOWN.format(as_json=as_json)]
    done = subprocess.run(code, capture_output=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    text = done.stdout.decode(encoding.partition(":")[0])
    assert "\\udce9.jpg" in text
    if as_json:
        assert [match["image"] for match in json.loads(text)] == [
            "caf\udce9.jpg",
            "\u043a\u043e\u0442 \U0001f600 \u00e9.jpg",
        ]


def test_an_error_is_told_in_any_encoding() -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "ascii:strict"}
    command = [sys.executable, "-m", "mmcompress", "report", "\u043a\u043e\u0442"]
    done = subprocess.run(command, capture_output=True, env=environment, check=False)
    assert done.returncode == 2 and b"error: \\u043a\\u043e\\u0442" in done.stderr
