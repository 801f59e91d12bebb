"""The seam on the driver, by ctypes and through pycuda, against a stand-in for libcuda.so.1 that is compiled here."""

from __future__ import annotations

import ctypes
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from stand_in_driver import Driver, pycuda_on, round_trip

from mmcompress.errors import MissingRequirementError, UsageError
from mmcompress.runtime import libcuda
from mmcompress.runtime.cuda import Cuda
from mmcompress.runtime.gpu import CHOICE, open_cuda
from mmcompress.runtime.libcuda import CONSTANTS, SIGNATURES, LibCuda
from mmcompress.runtime.pycuda import PyCuda

Open = Callable[[], Cuda]


@pytest.fixture(params=["driver", "pycuda"])
def opened(request: pytest.FixtureRequest, driver: Driver) -> Open:
    """Opens one of the two implementations on the stand-in."""
    if request.param == "driver":
        return lambda: LibCuda(driver.library)
    return lambda: PyCuda(pycuda_on(driver))


def test_the_device_as_the_driver_describes_it(opened: Open, driver: Driver) -> None:
    driver.reset(cuda=13020, multiprocessors=16, capability=87, integrated=True, name="Orin")
    device = opened().device
    assert (device.name, device.capability, device.target) == ("Orin", (8, 7), "sm87")
    assert (device.multiprocessors, device.integrated, device.cuda) == (16, True, (13, 2))
    assert device.memory_bytes == 8 << 30
    assert device.uuid in (None, "00112233-4455-6677-8899-aabbccddeeff")


def test_a_driver_that_tells_no_uuid_serves(driver: Driver) -> None:
    driver.fail("cuDeviceGetUuid_v2", code=801)
    device = LibCuda(driver.library).device
    assert device.uuid is None and device.multiprocessors > 0


def test_describing_the_device_takes_no_memory_of_it(opened: Open, driver: Driver) -> None:
    opened()
    assert driver.library.standin_retains() == 0


@pytest.mark.parametrize("version", [12020, 12060, 12080, 13000])
def test_every_driver_from_cuda_12_on_serves(opened: Open, driver: Driver, version: int) -> None:
    driver.reset(cuda=version)
    assert opened().device.cuda == (version // 1000, version % 1000 // 10)


def test_an_older_driver_is_named_with_what_is_needed(opened: Open, driver: Driver) -> None:
    driver.reset(cuda=11040)
    with pytest.raises(MissingRequirementError) as caught:
        opened()
    assert caught.value.what == "TensorRT 10.3 needs a driver for CUDA 12.0, and this driver is for CUDA 11.4"
    assert caught.value.hint == "install NVIDIA driver 525 or later"


def test_no_device_is_said_with_the_drivers_answer(
    opened: Open, driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    driver.reset(init=100)
    with pytest.raises(MissingRequirementError, match="no CUDA-capable device is detected") as caught:
        opened()
    assert caught.value.what.startswith("there is no NVIDIA GPU to run on: ")
    assert caught.value.hint.startswith("run this on a machine with an NVIDIA GPU")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    with pytest.raises(MissingRequirementError) as caught:
        opened()
    assert caught.value.hint.startswith("CUDA_VISIBLE_DEVICES is '7'")
    driver.reset(devices=0)
    with pytest.raises(MissingRequirementError, match="cuDeviceGetCount answers 0 devices"):
        opened()


def test_a_driver_that_was_updated_under_the_kernel(driver: Driver) -> None:
    driver.reset(init=803)
    with pytest.raises(MissingRequirementError) as caught:
        LibCuda(driver.library)
    assert "cuInit answers CUDA_ERROR_SYSTEM_DRIVER_MISMATCH (803): system has unsupported" in caught.value.what
    assert "restart the machine" in caught.value.hint


def test_an_error_without_a_name_keeps_its_number(driver: Driver) -> None:
    driver.reset(init=999)
    with pytest.raises(MissingRequirementError, match=r"cuInit answers an unknown error \(999\)"):
        LibCuda(driver.library)


def test_no_driver_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libcuda, "LIBRARY", "libcuda-that-is-not-there.so.1")
    with pytest.raises(MissingRequirementError, match="the driver's library cannot be loaded") as caught:
        LibCuda.open()
    assert "docker run --gpus all" in caught.value.hint


def test_no_pycuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycuda", None)
    monkeypatch.setitem(sys.modules, "pycuda.driver", None)
    monkeypatch.setenv(CHOICE, "pycuda")
    with pytest.raises(MissingRequirementError, match="asks for pycuda") as caught:
        open_cuda()
    assert "unset MMCOMPRESS_CUDA" in caught.value.hint


def test_another_implementation_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CHOICE, "cuda-python")
    with pytest.raises(UsageError, match="MMCOMPRESS_CUDA is 'cuda-python'"):
        open_cuda()


def test_copies_and_events(opened: Open, driver: Driver) -> None:
    given = np.random.default_rng(0).standard_normal((4, 3, 8), dtype=np.float32)
    np.testing.assert_array_equal(round_trip(opened(), given), given)
    assert driver.live() == {} and driver.depth() == 0


def test_mapped_memory_where_the_gpu_is_integrated(opened: Open, driver: Driver) -> None:
    driver.reset(integrated=True)
    seam = opened()
    with seam.current():
        host = seam.malloc_host(64)
        assert seam.mapped(host) == host
        seam.free_host(host)
    assert "cuMemHostAlloc flags=3" in driver.calls()
    assert driver.live() == {}


def test_other_threads_work_and_no_context_stays(opened: Open, driver: Driver) -> None:
    """Each thread finds the context current inside only, whichever thread was first."""
    seam = opened()
    given = np.arange(12, dtype=np.float32)
    failures: list[BaseException] = []
    depths: list[int] = []

    def work() -> None:
        try:
            np.testing.assert_array_equal(round_trip(seam, given), given)
            depths.append(driver.depth())
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    work()
    assert failures == [] and depths == [0] * 5
    assert driver.library.standin_retains() == 1 and driver.live() == {}


def test_pycuda_lets_go_of_the_context_when_the_process_ends(driver: Driver) -> None:
    seam = PyCuda(pycuda_on(driver))
    with seam.current():
        assert driver.library.standin_retains() == 1
    seam.release()
    seam.release()
    assert driver.library.standin_retains() == 0 and driver.depth() == 0


def test_a_failure_inside_pops_the_context_too(opened: Open, driver: Driver) -> None:
    seam = opened()
    with pytest.raises(ZeroDivisionError), seam.current():
        raise ZeroDivisionError
    with seam.current():
        assert driver.depth() == 1
    assert driver.depth() == 0


def test_a_call_without_the_context_is_an_error(opened: Open) -> None:
    with pytest.raises(MissingRequirementError, match="invalid device context"):
        opened().malloc(8)


def test_no_memory_left_is_said(opened: Open, driver: Driver) -> None:
    seam = opened()
    driver.fail("cuMemAlloc_v2", code=2)
    with seam.current(), pytest.raises(MissingRequirementError, match="the GPU has no memory left") as caught:
        seam.malloc(8)
    assert "smaller batch" in caught.value.hint and driver.live() == {}


def test_a_graph_is_captured_and_launched(driver: Driver) -> None:
    seam = LibCuda(driver.library)
    with seam.current():
        stream, host, back, address = seam.open_stream(), seam.malloc_host(4), seam.malloc_host(4), seam.malloc(4)
        seam.graphs.begin_capture(stream)
        seam.copy_in(address, host, 4, stream)
        seam.copy_out(back, address, 4, stream)
        graph = seam.graphs.end_capture(stream)
        for value in (b"once", b"more"):
            ctypes.memmove(host, value, 4)
            seam.graphs.launch(graph, stream)
            seam.synchronize(stream)
            assert ctypes.string_at(back, 4) == value
        assert driver.live() == {"memory": 1, "host": 2, "stream": 1, "exec": 1}
        seam.graphs.close_graph(graph)
    assert "cuStreamBeginCapture_v2 mode=1" in driver.calls()


def test_a_capture_that_is_broken_leaves_the_stream_free(driver: Driver) -> None:
    seam = LibCuda(driver.library)
    with seam.current():
        stream = seam.open_stream()
        seam.graphs.begin_capture(stream)
        with pytest.raises(MissingRequirementError):
            seam.malloc(4)
        with pytest.raises(MissingRequirementError, match="901"):
            seam.graphs.end_capture(stream)
        seam.synchronize(stream)
        seam.close_stream(stream)
    assert driver.live() == {}


def test_a_driver_without_a_function_is_too_old(driver: Driver) -> None:
    with pytest.raises(MissingRequirementError, match="the driver's library has no cuDriverGetVersion"):
        LibCuda(ctypes.CDLL(None))


@pytest.mark.parametrize(("version", "serves"), [(11080, False), (12020, True), (12060, True), (13000, True)])
def test_doctor_on_drivers_of_several_releases(driver_library: Path, version: int, serves: bool) -> None:
    """The whole command, in a process that finds the stand-in where the driver's library would be."""
    pytest.importorskip("tensorrt_rtx")
    environment = {
        **{name: value for name, value in os.environ.items() if name not in ("CUDA_VISIBLE_DEVICES", CHOICE)},
        "LD_LIBRARY_PATH": str(driver_library.parent),
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "STAND_IN_CUDA": str(version),
    }
    command = [sys.executable, "-m", "mmcompress", "doctor", "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    backends = {found["name"]: found for found in json.loads(done.stdout.splitlines()[-1])["backends"]}
    assert backends["tensorrt-rtx"]["usable"] is serves
    if not serves:
        assert backends["tensorrt-rtx"]["reason"].endswith("driver for CUDA 12.0, and this driver is for CUDA 11.8")


HEADERS = [path for root in ("/usr/local/cuda", "/usr") if (path := Path(root) / "include/cuda.h").is_file()]


@pytest.mark.skipif(not HEADERS, reason="no cuda.h to compare with")
def test_names_signatures_and_constants_are_those_of_cuda_h() -> None:
    text = HEADERS[0].read_text(encoding="utf-8", errors="replace")
    pointers = {"CUstream", "CUevent", "CUgraph", "CUgraphExec", "CUcontext"}
    widths = {ctypes.c_int: "int", ctypes.c_uint: "unsigned int", ctypes.c_size_t: "size_t"}
    enums = {"CUresult", "CUdevice", "CUdevice_attribute", "CUstreamCaptureMode"}
    for name, arguments in SIGNATURES.items():
        plain = re.sub(r"_v\d$", "", name).removesuffix("WithFlags" if name.startswith("cuGraphInst") else "")
        if plain != name:
            assert re.search(rf"#define {plain}\s+\S*\b{name}\b", text), name
        declared = re.search(rf"CUresult CUDAAPI {plain}\((.*?)\);", text, re.DOTALL)
        assert declared is not None, name
        types = [" ".join(part.split()[:-1]) + "*" * part.split()[-1].count("*") for part in declared[1].split(",")]
        assert len(types) == len(arguments), name
        for said, used in zip(types, arguments, strict=True):
            said = said.replace("const ", "").replace(" *", "*")
            if said.endswith("*") or said in pointers:
                assert ctypes.sizeof(used) == ctypes.sizeof(ctypes.c_void_p), (name, said)
            elif said in ("CUdeviceptr", "unsigned long long", "cuuint64_t"):
                assert used is ctypes.c_uint64, (name, said)
            elif said in enums:
                assert used is ctypes.c_int, (name, said)
            else:
                assert widths[used] == said, (name, said)
    for name, value in CONSTANTS.items():
        found = re.search(rf"(?:#define )?\b{name}\s*=?\s*(0x[0-9a-fA-F]+|\d+)", text)
        assert found is not None and int(found[1], 0) == value, name
