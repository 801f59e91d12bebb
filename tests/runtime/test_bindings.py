"""TensorRT's real bindings, from 10.3 to 11.4, have every name that is used here: no GPU and no library of NVIDIA.

The bindings' wheels install alone from PyPI. What they link with is stood in for by libraries that define the nine
functions that they take the address of, so they import, and their classes and enums can be read. Which names are used
is read from our own sources: every attribute of a variable that is called as in `OF` below.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.markers import Marker

ROOT = Path(__file__).parents[2]
VERSIONS = ("10.3.0", "10.13.3.9", "10.16.1.11", "11.0.0.114", "11.4.0.106")
"""JetPack 6, JetPack 7.1, the last of 10, the first and the last of 11."""
OF = {
    "trt": "",
    "module": "",
    "builder": "Builder",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "profile": "IOptimizationProfile",
    "runtime": "Runtime",
    "engine": "ICudaEngine",
    "_engine": "ICudaEngine",
    "context": "IExecutionContext",
    "inspector": "EngineInspector",
    "timing_cache": "ITimingCache",
    "cache": "IRuntimeCache",
}
"""Variables by the class that they hold; the module itself has no name. `config` is one in each room."""
RTX_ONLY = {
    "ComputeCapability",
    "ComputeCapability.CURRENT",
    "IBuilderConfig.num_compute_capabilities",
    "IBuilderConfig.set_compute_capability",
    "Runtime.get_engine_validity",
    "EngineValidity",
    "EngineValidity.INVALID",
    "EngineValidity.SUBOPTIMAL",
    "EngineInvalidityDiagnostics",
    "EngineInvalidityDiagnostics.__members__",
    "DynamicShapesKernelSpecializationStrategy",
    "DynamicShapesKernelSpecializationStrategy.EAGER",
    "IExecutionContext.is_stream_capturable",
    "IRuntimeConfig.create_runtime_cache",
    "IRuntimeConfig.set_runtime_cache",
    "IRuntimeCache.deserialize",
    "IRuntimeCache.serialize",
    "IRuntimeConfig.dynamic_shapes_kernel_specialization_strategy",
}
"""Asked for with `hasattr` or behind one, as TensorRT-RTX alone has them."""
SINCE = {
    "IRuntimeConfig": "10.13",
    "IRuntimeConfig.set_execution_context_allocation_strategy": "10.13",
    "ICudaEngine.create_runtime_config": "10.13",
}
"""Of TensorRT-RTX's branch too."""
PYTHONS = {"__name__", "__version__"}
PROBE = """
import json, os, sys
sys.setdlopenflags(os.RTLD_LAZY)
import importlib
module = importlib.import_module(sys.argv[1])
classes = {name: value for name, value in vars(module).items() if isinstance(value, type)}
print(json.dumps({"": dir(module), **{name: [n for n in dir(value)] for name, value in classes.items()}}))
"""


def sources() -> list[Path]:
    """Our files that take TensorRT's module as an argument."""
    files = [*(ROOT / "export").rglob("*.py"), *(ROOT / "runtime").rglob("*.py")]
    return [file for file in files if re.search(r"\b(trt|module): ModuleType", file.read_text(encoding="utf-8"))]


def used_names() -> set[str]:
    """`Class.attribute`, or `Name` and `Name.MEMBER` of the module, of each attribute that our sources take."""
    names: set[str] = set()
    for file in sources():
        of = OF | {"config": "IBuilderConfig" if file.parent.name == "export" else "IRuntimeConfig"}
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Attribute):
                continue
            owner, outer = node.value, getattr(node.value, "value", None)
            variable, outer = (getattr(part, "id", getattr(part, "attr", "")) for part in (owner, outer))
            if variable in of:
                names.add(f"{of[variable]}.{node.attr}".lstrip("."))
            elif of.get(outer) == "":  # a member of one of the module's classes
                names.add(f"{variable}.{node.attr}")
    return names - PYTHONS


def missing(names: set[str], have: dict[str, list[str]]) -> set[str]:
    """Of the names used, those that a module does not have."""
    parts = {name: name.rpartition(".") for name in names}
    return {name for name, (owner, _, attribute) in parts.items() if attribute not in have.get(owner, ())}


def test_the_sources_are_read() -> None:
    names = used_names()
    assert {
        "Runtime.deserialize_cuda_engine",
        "ICudaEngine.get_tensor_profile_shape",
        "IExecutionContext.execute_async_v3",
        "ExecutionContextAllocationStrategy.USER_MANAGED",
        "IBuilderConfig.profiling_verbosity",
        "ProfilingVerbosity.DETAILED",
        "OnnxParser.parse_from_file",
        *RTX_ONLY,
    } - {"ComputeCapability.CURRENT"} <= names


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stand-ins for libnvinfer, its plugins and its parser, of 10 and 11."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("stand-in libraries need a C compiler")
    folder = tmp_path_factory.mktemp("libraries")
    functions = [
        *("createInferBuilder_INTERNAL", "createInferRefitter_INTERNAL", "createInferRuntime_INTERNAL"),
        *("createNvOnnxParserRefitter_INTERNAL", "createNvOnnxParser_INTERNAL", "getNvOnnxParserVersion"),
        *("getBuilderPluginRegistry", "getPluginRegistry", "initLibNvInferPlugins"),
    ]
    source = folder / "functions.c"
    source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in functions))
    for major in (10, 11):
        for name in ("nvinfer", "nvinfer_plugin", "nvonnxparser"):
            file = f"lib{name}.so.{major}"
            command = [compiler, "-shared", "-fPIC", "-o", str(folder / file), f"-Wl,-soname,{file}", str(source)]
            subprocess.run(command, check=True)
    return folder


def pip_download(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Wheels by pip, from whatever index it is set up for."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--only-binary=:all:"]
    command += ["--timeout=20", "--retries=1", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=170)


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Skips where no index answers, or has no bindings for this Python."""
    arguments = ("--no-deps", "-d", str(tmp_path_factory.mktemp("index")), f"tensorrt-cu12-bindings=={VERSIONS[-1]}")
    try:
        done = pip_download(*arguments)
    except subprocess.TimeoutExpired:
        pytest.skip("pip's index does not answer in time")
    if done.returncode:
        pytest.skip(f"pip reaches no index: {done.stderr.strip().splitlines()[-1:]}")


def names_of(module: str, search: Path | None, libraries: Path) -> dict[str, list[str]]:
    environment = {**os.environ, "LD_LIBRARY_PATH": str(libraries)}
    if search is not None:
        environment["PYTHONPATH"] = str(search)
    done = subprocess.run([sys.executable, "-c", PROBE, module], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    names: dict[str, list[str]] = json.loads(done.stdout)
    return names


@pytest.mark.network
@pytest.mark.parametrize("version", VERSIONS)
def test_real_bindings_have_every_name(version: str, libraries: Path, index: None, tmp_path: Path) -> None:
    if sys.platform != "linux" or os.uname().machine != "x86_64":
        pytest.skip("reads the bindings of this machine's kind, and x86-64 alone has them all")
    done = pip_download("--no-deps", "-d", str(tmp_path), f"tensorrt-cu12-bindings=={version}")
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        wheel.extractall(tmp_path / "wheel")
    have = names_of("tensorrt_bindings", tmp_path / "wheel", libraries)
    number = tuple(map(int, version.split(".")[:2]))
    later = {name for name, since in SINCE.items() if tuple(map(int, since.split("."))) > number}
    assert missing(used_names() - RTX_ONLY - later, have) == set()
    assert missing(RTX_ONLY, have) == RTX_ONLY and missing({"Runtime.nothing"}, have) == {"Runtime.nothing"}


@pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed")
def test_tensorrt_rtx_has_every_name(libraries: Path) -> None:
    assert missing(used_names() | RTX_ONLY, names_of("tensorrt_rtx", None, libraries)) == set()


def requirements() -> Iterator[str]:
    """What `pip install mmcompress[tensorrt]` asks for on a Jetson with Python 3.10."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    listed = re.search(r"^dependencies = \[(.*?)^\]", text, re.MULTILINE | re.DOTALL)
    extra = re.search(r"^tensorrt = \[(.*?)\]", text, re.MULTILINE | re.DOTALL)
    assert listed is not None and extra is not None
    for requirement, marker in re.findall(r'"([^";]+)(?:;([^"]*))?"', listed[1] + extra[1]):
        held = {"": True, "python_version < '3.11'": True, "'tegra' not in platform_release": False}
        if held[marker.strip()]:
            yield requirement.strip()


@pytest.mark.parametrize(("release", "wheel"), [("5.15.148-tegra", False), ("6.8.0-45-generic", True)])
def test_only_a_jetson_goes_without_the_wheel(release: str, wheel: bool) -> None:
    marker = Marker("'tegra' not in platform_release")
    assert str(marker).replace('"', "'") in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert marker.evaluate({"platform_release": release}) is wheel


@pytest.mark.network
def test_a_jetson_installs_from_wheels_alone(index: None, tmp_path: Path) -> None:
    """Ubuntu 22.04 on aarch64 with Python 3.10, as JetPack 6 has it: nothing is compiled there, and no `tensorrt`."""
    wanted = list(requirements())
    assert any(name.startswith("numpy") for name in wanted) and not any("tensorrt" in name for name in wanted)
    platforms = ("manylinux2014_aarch64", "manylinux_2_17_aarch64", "manylinux_2_28_aarch64", "manylinux_2_35_aarch64")
    done = pip_download(
        *(f"--platform={platform}" for platform in (*platforms, "linux_aarch64")),
        "--python-version=3.10",
        "-d",
        str(tmp_path),
        *wanted,
    )
    assert done.returncode == 0, done.stderr
    names = {wheel.name.split("-")[0].lower() for wheel in tmp_path.glob("*.whl")}
    assert {"numpy", "pillow", "pydantic_core", "tokenizers", "tomli"} <= names
    assert not {name for name in names if re.match("torch|tensorrt|cuda|nvidia", name)}
    assert all(re.search(r"aarch64|-any\.whl$", wheel.name) for wheel in tmp_path.glob("*.whl"))
