"""SIGTERM and SIGUSR1: the state is written, the exit code asks for another try, and the same command goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from toy_training import run

from mmcompress.artifact import Artifact
from mmcompress.compress.train.stopping import told_to_stop
from mmcompress.config import OptimizerConfig
from mmcompress.errors import StoppedError

SELDOM = OptimizerConfig(epochs=3, batch=8, ema=0.9, save_minutes=60)


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGUSR1])
@pytest.mark.parametrize("step", [0, 6, 14])
def test_a_stopped_run_goes_on_with_the_same_bytes(tmp_path: Path, sent: signal.Signals, step: int) -> None:
    def told(now: int) -> None:
        if now == step:
            os.kill(os.getpid(), sent)

    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGUSR1)
    with pytest.raises(
        StoppedError, match=rf"test was told to stop \({sent.name}\) after step {step + 1} of 15"
    ) as caught:
        run(tmp_path / "parts", SELDOM, told)
    assert caught.value.exit_code == 75 and "same command" in caught.value.hint
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGUSR1)) == before
    assert [path.name for path in (tmp_path / "parts").glob("state-*")] == [f"state-{step + 1:06d}.safetensors"]
    whole, resumed = run(tmp_path / "whole", SELDOM), run(tmp_path / "parts", SELDOM)
    assert resumed.steps_run == 14 - step
    assert all(torch.equal(whole.weights[name], resumed.weights[name]) for name in whole.weights)
    assert resumed.metrics["loss"] == whole.metrics["loss"]
    assert (resumed.metrics["images_per_s"] is None) == (step == 14), "what was not timed is not a figure"


def test_the_first_signal_is_told_and_outside_of_the_main_thread_none_is_noted() -> None:
    with told_to_stop() as asked:
        assert asked.by is None
        for sent in (signal.SIGUSR1, signal.SIGTERM):
            os.kill(os.getpid(), sent)
    assert asked.by == "SIGUSR1"
    handlers: list[Any] = []

    def elsewhere() -> None:
        with told_to_stop():
            handlers.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert handlers == [signal.getsignal(signal.SIGTERM)]


def test_the_command_ends_with_75_and_goes_on(
    cli: Callable[..., Any], tiny_clip_folder: Path, coloured_squares: Path, tmp_path: Path
) -> None:
    given = ("--teacher", tiny_clip_folder, "--data", coloured_squares, "--student", "inherit:0.5")
    few = ("--optimizer-steps", 100, "--optimizer-batch", 8, "--optimizer-save-minutes", 1e-9)

    def arguments(out: str) -> list[str]:
        return [str(word) for word in ("distill", *given, *few, "--out", tmp_path / out)]

    command = [sys.executable, "-m", "mmcompress", *arguments("parts")]
    stopped = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not list((tmp_path / ".parts.work").glob("state-*")) and stopped.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    stopped.send_signal(signal.SIGTERM)
    _, said = stopped.communicate(timeout=60)
    assert stopped.returncode == 75, said
    assert "error: distilling parts was told to stop (SIGTERM)" in said and "hint: give the same command again" in said
    assert not (tmp_path / "parts").exists()
    resumed, whole = cli(*arguments("parts")), cli(*arguments("whole"))
    assert resumed.code == whole.code == 0 and "goes on after step" in resumed.err
    first, second = (Artifact.open(tmp_path / name).manifest.files for name in ("parts", "whole"))
    assert first["model.safetensors"] == second["model.safetensors"]
