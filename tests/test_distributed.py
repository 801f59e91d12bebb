"""Two processes equal one: the same loss, the same weights after some steps."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

SCRIPT = """
import sys, torch
from safetensors.torch import save_file
from mmcompress.architecture import DualEncoderConfig
from mmcompress.compress.train.losses import info_nce
from mmcompress.compress.train.optimize import optimize
from mmcompress.config import OptimizerConfig
from mmcompress.distributed import gathered, gathered_ids, world
from mmcompress.model import DualEncoder, initialize
from pathlib import Path

torch.set_num_threads(1)
tower = {"width": 32, "head_dim": 16, "heads": (2,), "mlp": (64,)}
config = DualEncoderConfig.model_validate({
    "embed_dim": 16,
    "image": {**tower, "image_size": 16, "patch": 8},
    "text": {**tower, "vocab": 20, "context": 6, "eos_token_id": 19},
})
out = Path(sys.argv[1])
with world("cpu") as here:
    model = initialize(DualEncoder(config), 0)
    generator = torch.Generator().manual_seed(1)
    batches = [(torch.randn(8, 3, 16, 16, generator=generator), torch.randint(0, 20, (8, 6), generator=generator))
               for _ in range(4)]

    def stream(epoch, skip):
        for pixels, tokens in batches[skip:]:
            mine = slice(here.rank, None, here.size)
            yield pixels[mine], tokens[mine], torch.arange(8)[mine]

    def loss_of(batch, epoch):
        images, texts = gathered(model(batch[0], batch[1]), here)
        groups = gathered_ids(batch[2], here)
        return info_nce(images, texts, model.logit_scale, groups[:, None] == groups[None])

    optimizer = OptimizerConfig(steps=4, batch=8, lr=1e-3, precision="float32")
    optimize(model, loss_of, stream, config=optimizer, pairs=32, world=here, work=out, what="test")
    if here.rank == 0:
        save_file(model.state_dict(), out / f"{here.size}.safetensors")
threads = [task.read_text().strip() for task in Path("/proc/self/task").glob("*/comm")]
assert not any("gloo" in name for name in threads), f"threads that may abort the process at its exit: {threads}"
"""


def test_two_processes_equal_one(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    for size in (1, 2):
        shared = {**os.environ, "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        ranks = [
            subprocess.Popen([sys.executable, "-c", SCRIPT, str(tmp_path)], env={**shared, "RANK": str(rank)})
            for rank in range(size)
        ]
        assert [rank.wait(timeout=120) for rank in ranks] == [0] * size
    one, two = load_file(tmp_path / "1.safetensors"), load_file(tmp_path / "2.safetensors")
    for name in one:
        torch.testing.assert_close(one[name], two[name], atol=1e-5, rtol=1e-4, msg=name)
