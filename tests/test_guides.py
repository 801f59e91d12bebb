"""What README and guides tell a reader to type, typed in a folder as they suppose one, with an installed wheel."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from check_wheel import ROOT
from guides import ELSEWHERE, commands, prepared, shorter, write_guides

GUIDES = [path.name for path in sorted((ROOT / "docs").glob("*.md")) if commands(path)]
MAY_FAIL = "mmcompress check"
"""With exit code 1: students of two steps are not what gates ask for."""
TIMEOUT_S = 900


def test_the_guides_are_found() -> None:
    assert len(GUIDES) > 10 and len(commands(ROOT / "README.md")) > 30


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment with the wheel, and with the packages of this one."""
    venv = tmp_path_factory.mktemp("installed") / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    python = str(venv / "bin/python")
    pip = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-deps", str(wheel)]
    subprocess.run(pip, check=True)
    asked = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    own = Path(subprocess.run(asked, check=True, capture_output=True, text=True).stdout.strip())
    (own / "besides.pth").write_text(sysconfig.get_path("purelib") + "\n")
    torchrun = venv / "bin/torchrun"
    torchrun.write_text(f'#!/bin/sh\nexec {python} -m torch.distributed.run "$@"\n')
    torchrun.chmod(0o755)
    return venv / "bin"


@pytest.mark.nightly
def test_what_readme_and_guides_say_works(installed: Path, tmp_path: Path) -> None:
    """README's commands first, and each guide's in a folder of its own in which README's have run."""
    folder = tmp_path / "readme"
    hub = write_guides(folder)
    here = os.environ | {"HF_HOME": str(hub), "HF_HUB_OFFLINE": "1", "PATH": f"{installed}:{os.environ['PATH']}"}
    here.pop("PYTHONPATH", None)
    failed = walk(ROOT / "README.md", folder, here)
    for guide in GUIDES:
        place = tmp_path / guide.removesuffix(".md")
        shutil.copytree(folder, place, copy_function=os.link)
        failed += walk(ROOT / "docs" / guide, place, here)
    assert not failed, "\n".join(failed)


def walk(page: Path, folder: Path, here: dict[str, str]) -> list[str]:
    """Type the commands of a page, and say which of them ended otherwise than they should, and what they said."""
    failed = []
    for command in commands(page):
        if any(words in command for words in ELSEWHERE):
            continue
        prepared(command, folder)
        asked = ["bash", "-c", shorter(command)]
        done = subprocess.run(asked, cwd=folder, env=here, capture_output=True, text=True, timeout=TIMEOUT_S)
        if done.returncode and not (done.returncode == 1 and command.startswith(MAY_FAIL)):
            failed.append(f"{page.name}: {command} ended with {done.returncode}:\n{done.stderr[-1500:]}")
    return failed
