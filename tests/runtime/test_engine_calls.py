"""A session on an engine, against stand-ins for the driver and for TensorRT: order, addresses, shapes and frees."""

from __future__ import annotations

import gc
import re
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from stand_in_driver import Driver, pycuda_on
from stand_in_tensorrt import DIM, GRAPH, SIDE, TensorRT, TensorRTRTX, answers

from mmcompress.errors import CorruptInputError, MissingRequirementError, MMCompressError, UsageError
from mmcompress.places import CACHE
from mmcompress.runtime.cuda import Cuda
from mmcompress.runtime.enginesession import MOST_SIZES, TensorRTSession
from mmcompress.runtime.libcuda import LibCuda
from mmcompress.runtime.plans import enter_profile
from mmcompress.runtime.pycuda import PyCuda

TWO_PROFILES = ((1, 1, 1), (2, 8, 32))


@pytest.fixture(params=["driver", "pycuda"])
def cuda(request: pytest.FixtureRequest, driver: Driver) -> Cuda:
    return LibCuda(driver.library) if request.param == "driver" else PyCuda(pycuda_on(driver))


@pytest.fixture
def trt(driver: Driver) -> TensorRT:
    return TensorRT(driver)


def opened(trt: TensorRT, cuda: Cuda) -> TensorRTSession:
    return TensorRTSession.load(trt, b"plan", GRAPH, cuda)  # type: ignore[arg-type]


def images(batch: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((batch, 3, SIDE, SIDE), dtype=np.float32)


def check(session: TensorRTSession, batch: int, seed: int = 0) -> None:
    pixels = images(batch, seed)
    np.testing.assert_array_equal(session.run({"pixels": pixels})["embedding"], answers(pixels))


def names(driver: Driver) -> list[str]:
    return [line.split()[0] for line in driver.calls() if not line.startswith(("cuCtx", "cuDevice"))]


def test_answers_at_every_batch_size_and_nothing_leaks(trt: TensorRT, cuda: Cuda, driver: Driver) -> None:
    with opened(trt, cuda) as session:
        for seed, batch in enumerate((1, 4, 2, 4, 1, 32, 1, 1, 1, 4, 4, 2)):
            check(session, batch, seed)
    assert trt.faults == [] and trt.contexts == 0
    assert driver.live() == {} and driver.depth() == 0


def test_the_order_of_a_call(trt: TensorRT, driver: Driver) -> None:
    """First enqueued, then captured and launched, then launched only; nothing is allocated for a size that was seen."""
    with opened(trt, LibCuda(driver.library)) as session:
        check(session, 2)
        driver.clear()
        check(session, 2)
        copies, launch = "cuMemcpyHtoDAsync_v2 {} cuMemcpyDtoHAsync_v2 cuStreamSynchronize", "cuGraphLaunch"
        capture = (
            "cuStreamBeginCapture_v2 standin_launch cuStreamEndCapture cuGraphInstantiateWithFlags cuGraphDestroy "
        )
        assert " ".join(names(driver)) == capture + copies.format(launch)
        for _ in range(3):
            driver.clear()
            check(session, 2)
            assert " ".join(names(driver)) == copies.format(launch)
        assert f"cuMemcpyHtoDAsync_v2 {2 * 3 * SIDE * SIDE * 4}" in driver.calls()
        assert f"cuMemcpyDtoHAsync_v2 {2 * DIM * 4}" in driver.calls()


def test_a_graph_each_for_three_batch_sizes(trt: TensorRT, driver: Driver) -> None:
    with opened(trt, LibCuda(driver.library)) as session:
        for seed, batch in enumerate((32, 1, 8) * 2):  # the largest first, so that nothing grows
            check(session, batch, seed)
        assert driver.live()["exec"] == 3 and session.uncaptured is None
        driver.clear()
        for seed, batch in enumerate((8, 32, 1, 1, 8, 32), 10):
            check(session, batch, seed)
        assert names(driver).count("cuGraphLaunch") == 6 and "standin_launch" not in names(driver)
    assert trt.faults == [] and driver.live() == {}


def test_memory_that_grows_drops_the_graphs_with_its_old_addresses(trt: TensorRT, driver: Driver) -> None:
    with opened(trt, LibCuda(driver.library)) as session:
        for batch in (1, 1, 1):
            check(session, batch)
        assert driver.live()["exec"] == 1
        check(session, 9)
        assert "exec" not in driver.live() and trt.contexts == 1
        for batch in (1, 1, 9, 9):
            check(session, batch)
        assert driver.live()["exec"] == 2
    assert trt.faults == [] and driver.live() == {}


def test_the_size_that_was_used_longest_ago_is_dropped(trt: TensorRT, driver: Driver) -> None:
    with opened(trt, LibCuda(driver.library)) as session:
        for batch in (32, *range(1, MOST_SIZES + 4)):
            check(session, batch)
            check(session, batch)
        assert trt.contexts == MOST_SIZES and driver.live()["exec"] == MOST_SIZES
    assert trt.faults == [] and driver.live() == {}


def test_two_profiles(driver: Driver, cuda: Cuda) -> None:
    trt = TensorRT(driver, TWO_PROFILES)
    with opened(trt, cuda) as session:
        assert session.max_batch == 32
        for batch in (1, 2, 32, 1, 2, 32, 1):
            check(session, batch)
            assert next(reversed(session._calls.values())).context.profile == (0 if batch == 1 else 1)
    assert trt.faults == [] and driver.live() == {}


def test_a_batch_that_no_profile_takes(trt: TensorRT, cuda: Cuda, driver: Driver) -> None:
    with opened(trt, cuda) as session:
        check(session, 2)
        with pytest.raises(UsageError, match="takes batches of 1 to 32, and 'pixels' is of shape"):
            session.run({"pixels": images(33)})
        check(session, 2)
    assert driver.live() == {}


def test_nothing_is_copied_where_memory_is_shared(trt: TensorRT, cuda: Cuda, driver: Driver) -> None:
    driver.reset(integrated=True, capability=87)
    shared = LibCuda(driver.library) if isinstance(cuda, LibCuda) else PyCuda(pycuda_on(driver))
    with opened(trt, shared) as session:
        for batch in (1, 1, 1, 3, 1):
            check(session, batch)
        assert not [name for name in names(driver) if name.startswith("cuMemcpy")]
        assert driver.live()["memory"] == 1  # scratch
    assert trt.faults == [] and driver.live() == {}


def test_what_is_returned_and_fed_is_the_callers(trt: TensorRT, cuda: Cuda) -> None:
    with opened(trt, cuda) as session:
        pixels = images(2)
        expected = answers(pixels)
        first = session.run({"pixels": pixels})["embedding"]
        pixels[:] = 0
        session.run({"pixels": pixels})
        np.testing.assert_array_equal(first, expected)
    np.testing.assert_array_equal(first, expected)
    first[:] = 0  # writable, and of no session


def test_two_threads_on_one_session(trt: TensorRT, cuda: Cuda, driver: Driver) -> None:
    wrong: list[Any] = []

    def work(number: int) -> None:
        try:
            for seed in range(300):
                check(session, 1 + (seed + number) % 4, 1000 * number + seed)
        except BaseException as failure:
            wrong.append(failure)

    with opened(trt, cuda) as session:
        threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == [] and trt.faults == [] and driver.live() == {}


def test_two_sessions_side_by_side(trt: TensorRT, cuda: Cuda, driver: Driver) -> None:
    one, other = opened(trt, cuda), opened(trt, cuda)
    for seed in range(4):
        check(one, 3, seed)
        check(other, 2, seed)
    one.close()
    check(other, 2)
    other.close()
    assert trt.faults == [] and driver.live() == {}


def test_sessions_that_share_an_engine(trt: TensorRT, cuda: Cuda, driver: Driver) -> None:
    first = opened(trt, cuda)
    second = first.shared()
    wrong: list[BaseException] = []

    def work(session: TensorRTSession) -> None:
        try:
            for seed in range(100):
                check(session, 1 + seed % 3, seed)
        except BaseException as failure:
            wrong.append(failure)

    threads = [threading.Thread(target=work, args=(session,)) for session in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == [] and trt.engines == 1
    first.close()
    check(second, 2)
    with pytest.raises(UsageError, match="is closed"):
        first.shared()
    second.close()
    gc.collect()
    assert trt.engines == trt.contexts == 0 and trt.faults == [] and driver.live() == {}


def test_closed_twice_and_then_used(trt: TensorRT, cuda: Cuda, driver: Driver) -> None:
    session = opened(trt, cuda)
    check(session, 1)
    session.close()
    driver.clear()
    session.close()
    assert driver.calls() == []
    with pytest.raises(UsageError, match=r"the session of image-int8-sm89\.engine is closed"):
        check(session, 1)


@pytest.mark.parametrize("function", ["cuMemHostAlloc", "cuMemAlloc_v2"])
@pytest.mark.parametrize("nth", [1, 2])
def test_an_allocation_that_fails_while_memory_grows(
    trt: TensorRT, cuda: Cuda, driver: Driver, function: str, nth: int
) -> None:
    with opened(trt, cuda) as session:
        for _ in range(3):
            check(session, 2)
        before = driver.live()
        driver.fail(function, nth)
        with pytest.raises(MissingRequirementError, match="no memory left"):
            check(session, 4)
        assert driver.live() == before
        for batch in (2, 2, 4, 2):
            check(session, batch)
    assert trt.faults == [] and driver.live() == {}


def every_function(trt: TensorRT, driver: Driver, use: Callable[[], None]) -> list[tuple[str, int]]:
    """Each call that `use` makes of the driver, as (function, which of its calls)."""
    driver.clear()
    use()
    counted: dict[str, int] = {}
    found = []
    for name in names(driver):
        counted[name] = counted.get(name, 0) + 1
        found.append((name, counted[name]))
    return found


def test_any_single_failure_leaves_a_session_usable_or_closed(driver: Driver) -> None:
    """Every call of the driver fails once, in a run through opening, growth, capture, launch, timing and closing."""
    trt = TensorRT(driver, TWO_PROFILES)
    seam = LibCuda(driver.library)

    def use() -> None:
        with opened(trt, seam) as session:
            for batch in (1, 1, 1, 3, 3, 3, 1):
                check(session, batch)
            session.phases({"pixels": images(3)})

    points = every_function(trt, driver, use)
    assert len(points) > 80
    frees = ("cuMemFree", "Destroy")
    for function, nth in points:
        driver.fail(function, nth, code=1)
        try:
            use()
        except MMCompressError as error:
            assert "(1)" in error.what or "closed" in error.what or "could not run" in error.what, (function, nth)
        driver.fail("nothing")
        if trt.contexts:
            gc.collect()  # an error that was raised while another one was handled holds its frames in a circle
        # what a free refused to free is all that may be left
        assert sum(driver.live().values()) <= any(part in function for part in frees), (function, nth, driver.live())
        assert driver.depth() == 0 and trt.contexts == 0, (function, nth)
        driver.reset()
        seam = LibCuda(driver.library)
    assert trt.faults == []


@pytest.mark.parametrize("method", ["set_input_shape", "set_tensor_address", "set_optimization_profile_async"])
def test_tensorrt_refuses_in_the_middle(trt: TensorRT, cuda: Cuda, driver: Driver, method: str) -> None:
    with opened(trt, cuda) as session:
        check(session, 4)
        trt.refuse = method
        with pytest.raises(MMCompressError):
            check(session, 2)
        trt.refuse = None
        for batch in (2, 4, 2, 2):
            check(session, batch)
    assert trt.faults == [] and driver.live() == {}


def test_a_profile_may_be_refused_by_an_exception_or_by_false() -> None:
    def raising(number: int, stream: int) -> bool:
        raise RuntimeError("Error in set optimization profile async.")

    for refusing, hint in ((raising, "Error in set.*; its log"), (lambda number, stream: False, "^its log above")):
        context = SimpleNamespace(set_optimization_profile_async=refusing)
        with pytest.raises(MissingRequirementError, match=r"could not take profile 1 of e\.engine") as caught:
            enter_profile(context, 1, 0, "e.engine")
        assert re.search(hint, caught.value.hint)


def test_no_memory_for_a_context(trt: TensorRT, cuda: Cuda, driver: Driver) -> None:
    with opened(trt, cuda) as session:
        trt.refuse = "create_execution_context"
        with pytest.raises(MissingRequirementError, match="no memory left for this engine"):
            check(session, 2)
        trt.refuse = None
        check(session, 2)
    assert driver.live() == {}


def test_an_engine_that_cannot_be_captured_runs_without_a_graph(
    trt: TensorRT, driver: Driver, capfd: pytest.CaptureFixture[str]
) -> None:
    with opened(trt, LibCuda(driver.library)) as session:
        check(session, 2)
        driver.fail("cuStreamEndCapture", 1, code=901)
        for seed in range(4):
            check(session, 2, seed)
        assert session.uncaptured is not None and "cuStreamEndCapture" in session.uncaptured
        assert "exec" not in driver.live()
    assert "runs without a CUDA graph" in capfd.readouterr().err
    assert trt.faults == []


def test_tensorrt_rtx_may_say_that_it_cannot_be_captured(
    driver: Driver, capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CACHE, str(tmp_path))
    rtx = TensorRTRTX(driver)
    rtx.capturable = False
    with opened(rtx, LibCuda(driver.library)) as session:
        for seed in range(3):
            check(session, 2, seed)
        assert "exec" not in driver.live() and "cuStreamBeginCapture_v2" not in names(driver)
    assert "says that its work cannot be captured" in " ".join(capfd.readouterr().err.split())


def test_a_gpu_that_does_not_answer_any_more_closes_the_session(trt: TensorRT, cuda: Cuda, driver: Driver) -> None:
    session = opened(trt, cuda)
    check(session, 2)
    driver.break_gpu()
    with pytest.raises(MissingRequirementError, match="an illegal memory access"):
        check(session, 2)
    with pytest.raises(UsageError, match="is closed"):
        check(session, 2)
    session.close()
    assert driver.depth() == 0


def test_closing_does_not_hide_the_callers_error(
    trt: TensorRT, cuda: Cuda, driver: Driver, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ZeroDivisionError), opened(trt, cuda) as session:
        check(session, 2)
        driver.fail("cuMemFree_v2", code=1)
        raise ZeroDivisionError
    assert "closing the session failed too" in capfd.readouterr().err
    assert sum(driver.live().values()) == 1  # what could not be freed, and nothing else


def test_closing_that_fails_is_said_where_nothing_else_did(trt: TensorRT, cuda: Cuda, driver: Driver) -> None:
    with pytest.raises(MissingRequirementError, match="the GPU refused"), opened(trt, cuda) as session:
        check(session, 2)
        driver.fail("cuMemFreeHost", code=1)
    assert sum(driver.live().values()) == 1


def test_where_the_time_went(trt: TensorRT, cuda: Cuda, driver: Driver) -> None:
    """The stand-in counts operations: one copy in, one kernel, one copy out, each with the event behind it."""
    with opened(trt, cuda) as session:
        for seed in range(3):
            pixels = images(2, seed)
            phases = session.phases({"pixels": pixels})
            assert (phases.copy_in_ms, phases.gpu_ms, phases.copy_out_ms) == (2, 2, 2)
            assert phases.enqueue_ms > 0
        check(session, 2)
        with pytest.raises(UsageError, match="'pixels' was not given"):
            session.phases({})
    assert driver.live() == {}


def test_a_plan_that_tensorrt_refuses_leaks_nothing(trt: TensorRT, cuda: Cuda, driver: Driver) -> None:
    with pytest.raises(CorruptInputError, match=re.escape("tensorrt 10.3.0 refuses to load image-int8-sm89.engine")):
        TensorRTSession.load(trt, b"other", GRAPH, cuda)  # type: ignore[arg-type]
    driver.fail("cuStreamCreate", code=2)
    with pytest.raises(MissingRequirementError, match="no memory left"):
        opened(trt, cuda)
    assert driver.live() == {} and driver.depth() == 0


def test_what_tensorrt_rtx_compiled_is_kept_for_the_next_process(
    driver: Driver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CACHE, str(tmp_path))
    rtx, seam = TensorRTRTX(driver), LibCuda(driver.library)
    with opened(rtx, seam) as session, session.shared() as other:
        for batch in (1, 2, 1):
            check(session, batch)
            check(other, batch)
    assert rtx.compiled == 1 and len({id(cache) for cache in rtx.caches}) == 1
    (kept,) = (tmp_path / "kernels").iterdir()
    assert kept.read_bytes() == b"kernels of 2 layers"
    for content, compiled in ((b"kernels of 2 layers", 0), (b"damaged", 1)):
        kept.write_bytes(content)
        again = TensorRTRTX(driver)
        with opened(again, seam) as session:
            check(session, 2)
        assert again.compiled == compiled and kept.read_bytes() == b"kernels of 2 layers"
    assert driver.live() == {}


def test_a_cache_folder_that_cannot_be_written_costs_nothing_else(
    driver: Driver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv(CACHE, str(tmp_path / "file"))
    with opened(TensorRTRTX(driver), LibCuda(driver.library)) as session:
        check(session, 2)
    assert driver.live() == {}
