"""The package as it is installed: every folder is in the list, the wheel holds everything, a device needs no torch."""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from built_wheel import copy_of_the_tree
from check_wheel import ROOMS, ROOT, SOURCES, differences
from plain_sdist import plain

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


def test_every_pin_has_its_hashes() -> None:
    """But torch, whose build differs by machine. `make hashes` writes them."""
    lines = [line.split(";")[0].strip() for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()]
    pins = {line for line in lines if line and line[0] != "#" and not line.startswith("torch==")}
    blocks = re.split(r"\n(?=[a-z])", (ROOT / "constraints-hashes.txt").read_text(encoding="utf-8"))[1:]
    hashed = {block.split()[0].split(";")[0]: re.findall(r"--hash=sha256:[0-9a-f]{64}", block) for block in blocks}
    assert hashed.keys() == pins, "run: make hashes"
    assert all(hashed.values())


def test_an_sdist_has_no_times_and_owners() -> None:
    made = []
    for time, owner, order in ((1, "one", 1), (2, "two", -1)):
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w:gz") as tar:
            for name in ("a", "a/x.py", "a/run")[::order]:
                member = tarfile.TarInfo(name)
                member.type = tarfile.DIRTYPE if name == "a" else tarfile.REGTYPE
                member.mtime, member.uname, member.mode = time, owner, 0o775 if name == "a/run" else 0o664
                member.size = 0 if name == "a" else len(name)
                tar.addfile(member, io.BytesIO(name.encode()))
        made.append(plain(packed.getvalue(), 1_700_000_000))
    assert made[0] == made[1]
    with tarfile.open(fileobj=io.BytesIO(made[0])) as tar:
        found = {member.name: (oct(member.mode), member.mtime) for member in tar}
        assert tar.extractfile("a/x.py").read() == b"a/x.py"  # type: ignore[union-attr]
    assert found == {
        "a": ("0o755", 1_700_000_000),
        "a/run": ("0o755", 1_700_000_000),
        "a/x.py": ("0o644", 1_700_000_000),
    }


@pytest.mark.slow
def test_a_release_that_is_built_twice_has_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `make dist` builds it, from files of other times, with what is installed here."""
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    built = []
    for place in ("one", "two"):
        copy_of_the_tree(tmp_path / place)
        for path in (tmp_path / place).rglob("*.py") if place == "two" else ():
            path.touch()
        build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(tmp_path / place / "dist")]
        subprocess.run([*build, str(tmp_path / place)], check=True, capture_output=True)
        sdist, wheel = sorted((tmp_path / place / "dist").iterdir(), key=lambda path: path.suffix)
        assert (sdist.suffix, wheel.suffix) == (".gz", ".whl")
        built.append((plain(sdist.read_bytes(), 1_700_000_000), wheel.read_bytes()))
    assert built[0] == built[1]


@pytest.mark.slow
def test_wheel_holds_every_file_of_the_tree(wheel: Path) -> None:
    assert differences(wheel) == []


def _python(version: str) -> str | None:
    """A Python of that version, where one is at hand."""
    for found in (sys.executable, shutil.which(f"python{version}")):
        code = f"import sys; sys.exit('%d.%d' % sys.version_info[:2] != {version!r})"
        if found is not None and subprocess.run([found, "-c", code], capture_output=True).returncode == 0:
            return found
    return None


@pytest.mark.slow
@pytest.mark.parametrize("version", ["3.10", "3.11", "3.12", "3.13"])
def test_a_device_needs_the_core_only(wheel: Path, tmp_path: Path, version: str) -> None:
    """From an installed wheel outside the checkout the runtime imports and commands work, without torch."""
    if (found := _python(version)) is None:
        pytest.skip(f"no Python {version} here")
    subprocess.run([found, "-m", "venv", str(tmp_path / "venv")], check=True)
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
