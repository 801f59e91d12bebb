"""BatchNorm's statistics against numpy over all images, and two processes against one."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from tiny_conv import conv_model, conv_pixels
from torch import Tensor

from mmcompress.compress.train.statistics import batch_norms, set_statistics
from mmcompress.distributed import World

HERE = World(0, 1, torch.device("cpu"))
WORLDS = Path(__file__).parents[2] / "worlds"
SCRIPT = """
import sys, torch
from pathlib import Path
from safetensors.torch import save_file
from tiny_conv import conv_model, conv_pixels
from mmcompress.compress.train.losses import info_nce
from mmcompress.compress.train.optimize import optimize
from mmcompress.compress.train.pairs import TrainingBatch
from mmcompress.compress.train.statistics import settling, synchronize
from mmcompress.config import OptimizerConfig
from mmcompress.distributed import gathered, gathered_ids, world

torch.set_num_threads(1)
out = Path(sys.argv[1])
with world("cpu") as here:
    model = conv_model().train()
    synchronize(model, here)
    tokens = torch.randint(0, 49, (8, 12), generator=torch.Generator().manual_seed(1))

    def stream(epoch, skip):
        for step in range(skip, 4):
            mine = slice(here.rank, None, here.size)
            pixels = conv_pixels(8, step)[mine]
            yield TrainingBatch([str(row) for row in range(8)][mine], pixels, tokens[mine], torch.arange(8)[mine], None)

    def loss_of(batch, epoch):
        images, texts = gathered(model(batch.pixels, batch.tokens), here)
        groups = gathered_ids(batch.groups, here)
        own = (1 - batch.pixels.mean((1, 2, 3)) * model.encode_image(batch.pixels)[:, 0]).mean()  # of samples alone
        return {"batch": info_nce(images, texts, model.logit_scale, groups[:, None] == groups[None]), "own": own}

    optimizer = OptimizerConfig(steps=4, batch=8, lr=1e-3, precision="float32")
    optimize(model, loss_of, stream, config=optimizer, pairs=32, world=here, work=out, what="test")
    settling(model, stream, 8, here)()
    if here.rank == 0:
        save_file(model.state_dict(), out / f"{here.size}.safetensors")
"""


def batches() -> list[Tensor]:
    return [1 + 2 * conv_pixels(6, seed) for seed in range(3)]


def test_statistics_are_those_of_all_images_together() -> None:
    model = conv_model().eval()
    norms = batch_norms(model)
    inputs: list[list[Tensor]] = [[] for _ in norms]
    for norm, seen in zip(norms, inputs, strict=True):
        norm.register_forward_pre_hook(lambda _, given, seen=seen: seen.append(given[0].double()))
    set_statistics(model.image, iter(batches()), HERE)
    assert not model.image.training
    for norm, seen in zip(norms, inputs, strict=True):
        assert len(seen) == 3
        values = torch.cat(seen).numpy()
        np.testing.assert_allclose(norm.mean.numpy(), values.mean((0, 2, 3)), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(norm.variance.numpy(), values.var((0, 2, 3)), rtol=1e-4)


def test_the_model_as_it_is_used_computes_what_it_did_in_training() -> None:
    """Of the batch that its statistics are of, whatever they were before."""
    model = conv_model()
    (pixels, *_) = batches()
    with torch.no_grad():
        trained = model.train().encode_image(pixels)
        before = model.eval().encode_image(pixels)
        set_statistics(model.image, iter([pixels]), HERE)
        used = model.encode_image(pixels)
    torch.testing.assert_close(used, trained, atol=1e-5, rtol=1e-4)
    assert (before - trained).abs().max() > 0.01


def test_two_processes_equal_one(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    paths = os.pathsep.join([str(WORLDS), os.environ.get("PYTHONPATH", "")])
    running = []
    for size in (1, 2):
        shared = {**os.environ, "PYTHONPATH": paths, "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1"}
        shared["MASTER_PORT"] = port
        running += [
            subprocess.Popen([sys.executable, "-c", SCRIPT, str(tmp_path)], env={**shared, "RANK": str(rank)})
            for rank in range(size)
        ]
    assert [rank.wait(timeout=240) for rank in running] == [0] * 3
    one, two = load_file(tmp_path / "1.safetensors"), load_file(tmp_path / "2.safetensors")
    for name in one:
        torch.testing.assert_close(one[name], two[name], atol=2e-5, rtol=1e-3, msg=name)
