"""Both halves at once: two processes on this machine, and a line between them that is as slow as is asked.

The line is a socket on the loopback whose sender holds back: each piece of a message leaves when a line of that
bandwidth would have carried it. So what the prediction leaves out is in the figure: copies, and two processes that
share caches. What waking up takes is measured here too, with messages of some bytes, and is part of the prediction.
"""

from __future__ import annotations

import math
import multiprocessing
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmcompress.errors import MissingRequirementError
from mmcompress.interrupts import children_spared
from mmcompress.measure.peak import random_feeds
from mmcompress.measure.split.plan import Line
from mmcompress.measure.split.times import Half
from mmcompress.runtime.machine import usable_cores
from mmcompress.runtime.scheduling import realtime
from mmcompress.runtime.session import Session

CALLS, WARM_UP = 30, 5
FEW, PAUSE_S = 16, 0.01
"""Bytes of a message whose time is not that of its bytes, and the pause before each, in which both ends fall asleep."""
PIECE = 1024
"""Bytes that leave at once."""
START_S = 60.0
_LENGTH = struct.Struct("!I")
Arrays = dict[str, NDArray[Any]]


def measured_ms(first: Half, second: Half, line: Line, seed: int = 0) -> float:
    """Median milliseconds of one image, from its pixels to its embedding, which comes back to the first process."""
    times = []
    with (
        first.open() as session,
        _other(_serve_half, (second, line)) as connection,
        realtime(first.threads <= usable_cores()),
    ):
        feeds = random_feeds(session, 1, seed)
        for number in range(WARM_UP + CALLS):
            begin = time.perf_counter()
            sent = session.run(feeds)
            _send(connection, b"".join(sent[spec.name].tobytes() for spec in first.graph.outputs), line)
            _receive(connection)
            if number >= WARM_UP:
                times.append(1e3 * (time.perf_counter() - begin))
    return float(np.median(times)) + line.rtt_ms


def request_ms() -> float:
    """Median milliseconds that a message of some bytes takes to another process and back, where both were waiting."""
    fast, times = Line(math.inf), []
    with _other(_serve_echo, ()) as connection, realtime():
        for number in range(WARM_UP + CALLS):
            time.sleep(PAUSE_S)
            begin = time.perf_counter()
            _send(connection, bytes(FEW), fast)
            _receive(connection)
            if number >= WARM_UP:
                times.append(1e3 * (time.perf_counter() - begin))
    return float(np.median(times))


@contextmanager
def _other(serve: Callable[..., None], given: tuple[Any, ...]) -> Iterator[socket.socket]:
    """A connection to a process that serves it; it ends with the connection."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=serve, args=(*given, there), daemon=True)
    with children_spared():
        process.start()
    try:
        if not here.poll(START_S):
            raise MissingRequirementError("the second process does not start", "give it more memory, or try again")
        with socket.create_connection(("127.0.0.1", here.recv()), timeout=START_S) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            yield connection
    finally:
        process.join(5)
        if process.is_alive():
            process.kill()
            process.join()


def _serve_half(half: Half, line: Line, told: Connection) -> None:
    with half.open() as session, _accepted(told) as connection, realtime(half.threads <= usable_cores()):
        while (message := _receive(connection)) is not None:
            answer = session.run(_arrays(session, message))
            _send(connection, answer[session.outputs[0].name].tobytes(), line)


def _serve_echo(told: Connection) -> None:
    fast = Line(math.inf)
    with _accepted(told) as connection, realtime():
        while (message := _receive(connection)) is not None:
            _send(connection, message, fast)


@contextmanager
def _accepted(told: Connection) -> Iterator[socket.socket]:
    """The connection of the process that is told the port."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        told.send(server.getsockname()[1])
        connection, _ = server.accept()
        with connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            yield connection


def _arrays(session: Session, message: bytes) -> Arrays:
    """The inputs of one image, in the order of the graph."""
    found, at = {}, 0
    for spec in session.inputs:
        shape = tuple(axis or 1 for axis in spec.shape)
        values = np.frombuffer(message, spec.dtype, int(np.prod(shape)), at)
        found[spec.name] = values.reshape(shape)
        at += values.nbytes
    return found


def _send(connection: socket.socket, message: bytes, line: Line) -> None:
    """A message with its length in front, no faster than the line."""
    begin = time.perf_counter()
    connection.sendall(_LENGTH.pack(len(message)))
    for start in range(0, len(message), PIECE):
        piece = message[start : start + PIECE]
        due = begin + 8 * (start + len(piece)) / line.bits_per_s
        while (left := due - time.perf_counter()) > 0:
            time.sleep(left)
        connection.sendall(piece)


def _receive(connection: socket.socket) -> bytes | None:
    """A message; None where the other side has closed."""
    head = _exactly(connection, _LENGTH.size)
    return None if head is None else _exactly(connection, _LENGTH.unpack(head)[0])


def _exactly(connection: socket.socket, size: int) -> bytes | None:
    parts = bytearray()
    while len(parts) < size:
        if not (part := connection.recv(size - len(parts))):
            return None
        parts += part
    return bytes(parts)
