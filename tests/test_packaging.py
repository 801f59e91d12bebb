"""The package as it is installed: every folder is in the list, the wheel holds everything, a device needs no torch."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from check_wheel import ROOMS, ROOT, SOURCES, differences

PYPROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def _listed_packages() -> list[str]:
    listed = re.search(r"^packages = \[(.*?)^\]", PYPROJECT, re.MULTILINE | re.DOTALL)
    assert listed is not None
    return re.findall(r'"([^"]+)"', listed[1])


def test_listed_packages_are_the_folders_on_disk() -> None:
    on_disk = {
        ".".join((package.replace("/", "."), *init.parent.relative_to(folder).parts))
        for package, folder in SOURCES.items()
        for init in folder.rglob("__init__.py")
        if not any(parent.is_symlink() for parent in init.parents)
    }
    assert sorted(on_disk) == sorted(_listed_packages())


def test_symlinks_are_relative_and_point_at_the_sources() -> None:
    for name in ROOMS:
        link = ROOT / "src/mmcompress" / name
        assert link.is_symlink() and link.readlink() == Path(f"../../{name}")


def test_constraints_pin_every_dependency_that_the_metadata_names() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines() if line[:1] != "#"]
    assert all(re.fullmatch(r"[a-z0-9-]+==[0-9.a-z]+(; python_version [<>=]+ \"3\.\d+\")?", line) for line in lines)
    dependencies = PYPROJECT.split("dependencies", 1)[1].split("[project.scripts]")[0]
    named = set(re.findall(r'"([a-z0-9-]+)(?:>=|")', dependencies))
    not_in_the_demo = {"tensorrt", "pycuda", "open-clip-torch", "tensorboard", "mmcompress"}
    assert named - {line.split("==")[0] for line in lines} <= not_in_the_demo


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a copy of the tree, since a build leaves folders behind."""
    tree, out = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("wheel")
    command = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\0")
    for name in filter(None, listed):
        source = ROOT / name
        if source.is_symlink() or source.is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, tree / name, follow_symlinks=False)
    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--disable-pip-version-check", "--no-deps", "-w", str(out)]
    subprocess.run([*pip, str(tree)], check=True)
    return next(out.glob("*.whl"))


@pytest.mark.slow
def test_wheel_holds_every_file_of_the_tree(wheel: Path) -> None:
    assert differences(wheel) == []


def _oldest_python() -> str:
    """Python 3.10 where it is at hand, since devices have it, else the one that runs the tests."""
    found = shutil.which("python3.10")
    if found is not None and subprocess.run([found, "-c", ""], capture_output=True).returncode == 0:
        return found
    return sys.executable


@pytest.mark.slow
def test_a_device_needs_the_core_only(wheel: Path, tmp_path: Path) -> None:
    """The runtime imports and the command line works in an environment without torch."""
    subprocess.run([_oldest_python(), "-m", "venv", str(tmp_path / "venv")], check=True)
    python = str(tmp_path / "venv/bin/python")
    constraints = ("-c", str(ROOT / "constraints.txt"))
    subprocess.run(
        [python, "-m", "pip", "install", "-q", "--disable-pip-version-check", *constraints, str(wheel)], check=True
    )
    modules = sorted(path.stem for path in (ROOT / "runtime").glob("*.py") if path.stem != "__init__")
    code = (
        "import importlib, importlib.util, sys\n"
        f"for name in {modules}: importlib.import_module('mmcompress.runtime.' + name)\n"
        "from mmcompress.data.spec import expand\n"
        "assert expand('demo:names') and expand('demo:test')\n"
        "assert importlib.util.find_spec('torch') is None\n"
        "assert not {'transformers', 'onnx', 'safetensors'} & set(sys.modules)\n"
    )
    subprocess.run([python, "-c", code], check=True, cwd=tmp_path)
    command = str(tmp_path / "venv/bin/mmcompress")
    assert "openvino" in subprocess.run([command, "doctor"], check=True, capture_output=True, text=True).stdout
    arguments = ["embed", "--teacher", "vit-l14", "--data", "demo:train", "--out", str(tmp_path / "out")]
    missing = subprocess.run([command, *arguments], capture_output=True, text=True)
    assert missing.returncode == 3, missing.stderr
    assert "needs the Python package" in missing.stderr and "hint: pip install 'mmcompress[compress]'" in missing.stderr
