"""Two processes: one's NaN is skipped by both, one's signal stops both, and both go on from what rank 0 wrote."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from toy_training import run

from mmcompress.config import OptimizerConfig

SCRIPT = """
import math, os, signal, sys, torch
from dataclasses import replace
from pathlib import Path
from safetensors.torch import save_file
from toy_training import network, stream
from mmcompress.compress.train.optimize import optimize
from mmcompress.config import OptimizerConfig
from mmcompress.distributed import world
from mmcompress.errors import MMCompressError

out, stop = Path(sys.argv[1]), int(sys.argv[2])
config = OptimizerConfig(epochs=2, batch=8, ema=0.9, save_minutes=60, precision="float32", max_skipped=3)
with world("cpu") as here:
    work = out / str(here.rank)  # a disk for each, as on two machines
    work.mkdir(exist_ok=True)
    trained = network()
    if here.rank:
        torch.nn.init.zeros_(trained[0].weight)  # which rank 0 overwrites

    def mine(epoch, skip):
        for batch in stream(epoch, skip):
            part = slice(here.rank, None, here.size)
            yield replace(batch, keys=batch.keys[part], values=batch.values[part])

    def loss_of(batch, _):
        if batch.step == stop and here.rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        broken = here.rank == 1 and batch.step in ((3,) if stop != 99 else (3, 4, 5))
        return torch.nn.functional.mse_loss(trained(batch.values), batch.values) + (math.nan if broken else 0)

    try:
        optimize(trained, loss_of, mine, config=config, pairs=40, world=here, work=work, what="test")
    except MMCompressError as error:
        (work / "error").write_text(error.what)
        sys.exit(error.exit_code)
    finally:
        here.collected(None)  # rank 0 holds the store
    save_file(trained.state_dict(), work / "weights")
"""


def two_processes(out: Path, stop: int) -> list[int]:
    """The exit codes; rank 1 gets a signal in the step `stop`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    worlds = str(Path(__file__).parents[2] / "worlds")
    shared = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    shared["PYTHONPATH"] = os.pathsep.join(filter(None, (worlds, os.environ.get("PYTHONPATH"))))
    command = [sys.executable, "-c", SCRIPT, str(out), str(stop)]
    ranks = [subprocess.Popen(command, env={**shared, "RANK": str(rank)}) for rank in range(2)]
    return [rank.wait(timeout=120) for rank in ranks]


def test_all_ranks_skip_stop_and_go_on_as_one(tmp_path: Path) -> None:
    assert two_processes(tmp_path, stop=6) == [75, 75]
    for rank, by in ((0, "another process was"), (1, "SIGTERM")):
        assert f"was told to stop ({by}) after step 7 of 10" in (tmp_path / str(rank) / "error").read_text()
    assert [path.name for path in tmp_path.glob("*/state-*")] == ["state-000007.safetensors"]
    assert two_processes(tmp_path, stop=-1) == [0, 0]
    first, second = (load_file(tmp_path / str(rank) / "weights") for rank in range(2))
    config = OptimizerConfig(epochs=2, batch=8, ema=0.9, precision="float32")
    one = run(tmp_path / "one", config, lambda step: float("nan") if step == 3 else 0.0)
    for name, weight in one.weights.items():
        assert torch.equal(first[name], second[name])
        torch.testing.assert_close(first[name], weight, atol=1e-5, rtol=1e-4, msg=name)


def test_what_one_rank_cannot_train_on_is_named_by_all(tmp_path: Path) -> None:
    assert two_processes(tmp_path, stop=99) == [2, 2]
    for rank in range(2):
        said = (tmp_path / str(rank) / "error").read_text()
        assert "in 3 steps in a row" in said and all(f"1/0/{row}" in said for row in range(8))
