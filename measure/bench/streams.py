"""Several requests at the same time: what a server sees, as throughput and as latency under load.

Each stream is a thread with a session of its own that calls without a pause; the threads of the runtime are divided
among the sessions, so that more streams mean less parallelism inside each. It works alike on every backend: a TensorRT
session has its own CUDA stream, and they share one engine. OpenVINO's request queue, which shares one compiled model,
would save memory and is left out.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack

import numpy as np

from mmcompress.measure.estimate import Times
from mmcompress.measure.interleave import REST, time_ms, warm_up
from mmcompress.measure.peak import random_call
from mmcompress.runtime.session import Session


def timed_streams(
    open_session: Callable[[], Session], streams: int, batch: int, seconds: float, rounds: int, seed: int
) -> tuple[list[list[Times]], float, str]:
    """By round and stream the milliseconds of its calls; batches a second over all rounds; and the device."""
    with ExitStack() as stack:
        sessions = [stack.enter_context(open_session())]
        while len(sessions) < streams:
            sessions.append(stack.enter_context(sessions[0].shared() or open_session()))
        calls = [random_call(session, batch, seed + number) for number, session in enumerate(sessions)]
        for call in calls:
            warm_up(call)
        timed, elapsed_s = [], 0.0
        for _ in range(rounds):
            times, took_s = concurrently(calls, seconds / rounds)
            timed.append(times)
            elapsed_s += took_s
            time.sleep(REST * took_s)
        return timed, sum(len(times) for by_stream in timed for times in by_stream) / elapsed_s, sessions[0].device


def concurrently(calls: Sequence[Callable[[], object]], seconds: float) -> tuple[list[Times], float]:
    """Each call again and again in a thread of its own: milliseconds by thread, and the seconds until all had ended."""
    begin = threading.Barrier(len(calls) + 1)
    timings: list[list[float]] = [[] for _ in calls]
    failures: list[BaseException] = []

    def stream(number: int) -> None:
        begin.wait()
        end = time.monotonic() + seconds
        try:
            while not timings[number] or time.monotonic() < end:
                timings[number].append(time_ms(calls[number]))
        except BaseException as failure:  # raised again in the thread that waits for all
            failures.append(failure)

    threads = [threading.Thread(target=stream, args=(number,)) for number in range(len(calls))]
    for thread in threads:
        thread.start()
    begin.wait()
    start = time.monotonic()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return [np.array(times) for times in timings], time.monotonic() - start
