"""Gradients reduced while the backward pass runs, against one all-reduce behind it, in two processes on this machine.

    python benchmarks/overlap.py [--width 384] [--blocks 12] [--batch 16] [--bucket 25] [--rounds 14] [--json]

The image tower of a vision transformer at 224 pixels in patches of 32, there and back, a thread a process, Gloo.
`after` is what training does (`average_gradients`). `during` reduces buckets of some MiB from hooks, as soon as all of
one have their gradients, last layers first (as DistributedDataParallel does, Li et al. 2020, section 3.2.3). `alone`
reduces nothing. Steps of the three take turns; a ratio is of one round. Rank 0 prints medians and ranges of the clock.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mmcompress.architecture import DualEncoderConfig
from mmcompress.compress.products import fast_products
from mmcompress.distributed import World, average_gradients
from mmcompress.model import DualEncoder, initialize

WAYS = ("alone", "after", "during")
WARM = 2


class Buckets:
    """Gradients of parameters, reduced bucket by bucket in one order on every rank."""

    def __init__(self, parameters: Sequence[nn.Parameter], size: float) -> None:
        self.buckets: list[list[nn.Parameter]] = [[]]
        self.begun = False
        for parameter in reversed(parameters):
            if sum(p.numel() for p in self.buckets[-1]) >= size:
                self.buckets.append([])
            self.buckets[-1].append(parameter)
            parameter.register_post_accumulate_grad_hook(self._has_gradient)
        self.of = {id(p): number for number, bucket in enumerate(self.buckets) for p in bucket}

    def begin(self) -> None:
        self.begun, self.missing = True, [len(bucket) for bucket in self.buckets]
        self.reducing: list[tuple[Tensor, dist.Work]] = []

    def _has_gradient(self, parameter: nn.Parameter) -> None:
        if self.begun:
            self.missing[self.of[id(parameter)]] -= 1
            while len(self.reducing) < len(self.buckets) and not self.missing[len(self.reducing)]:
                grads = [p.grad for p in self.buckets[len(self.reducing)] if p.grad is not None]
                flat = torch.cat([grad.flatten() for grad in grads])
                self.reducing.append((flat, dist.all_reduce(flat, async_op=True)))

    def finish(self) -> None:
        for bucket, (flat, work) in zip(self.buckets, self.reducing, strict=True):
            work.wait()
            flat /= dist.get_world_size()
            for parameter, mean in zip(bucket, flat.split([p.numel() for p in bucket]), strict=True):
                assert parameter.grad is not None
                parameter.grad.copy_(mean.view_as(parameter))
        self.begun = False


def process(asked: argparse.Namespace) -> None:
    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    here = World(dist.get_rank(), dist.get_world_size(), torch.device("cpu"))
    tower = {
        "width": asked.width,
        "head_dim": 64,
        "heads": (asked.width // 64,) * asked.blocks,
        "mlp": (4 * asked.width,) * asked.blocks,
    }
    small = {"width": 64, "head_dim": 64, "heads": (1,), "mlp": (64,), "vocab": 320, "context": 16, "eos_token_id": 1}
    image = {**tower, "image_size": 224, "patch": 32}
    config = DualEncoderConfig.model_validate({"embed_dim": 256, "image": image, "text": small})
    model = initialize(DualEncoder(config), 0)
    trained, pixels = list(model.image.parameters()), torch.randn(asked.batch, 3, 224, 224)
    buckets, found = Buckets(trained, asked.bucket * 2**20 / 4), {way: list[float]() for way in WAYS}
    for _ in range(WARM + asked.rounds):
        for way in WAYS:
            for parameter in trained:
                parameter.grad = None
            dist.barrier()
            start = time.perf_counter()
            if way == "during":
                buckets.begin()
            with fast_products():
                model.encode_image(pixels).sum().backward()
            if way == "during":
                buckets.finish()
            elif way == "after":
                average_gradients(trained, here)
            dist.barrier()
            found[way].append(1000 * (time.perf_counter() - start))
    if here.leads:
        tell(asked, sum(p.numel() for p in trained), {way: times[WARM:] for way, times in found.items()})
    dist.destroy_process_group()


def tell(asked: argparse.Namespace, parameters: int, found: dict[str, list[float]]) -> None:
    if asked.json:
        print(json.dumps({"parameters": parameters, **found}))
        return
    print(f"{parameters / 1e6:.1f} M parameters, {asked.batch} images a process\n\n| | ms | of after |\n|---|--:|--:|")
    for way, times in found.items():
        ratios = [one / after for one, after in zip(times, found["after"], strict=True)]
        print(f"| {way} | {middle(times, 0)} | {middle(ratios, 2)} |")


def middle(values: Sequence[float], digits: int) -> str:
    """The median, and the range."""
    low, median, high = (f"{one:.{digits}f}" for one in (min(values), statistics.median(values), max(values)))
    return f"{median} ({low} to {high})"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--blocks", type=int, default=12)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--bucket", type=float, default=25.0)
    parser.add_argument("--rounds", type=int, default=14)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    if "RANK" in os.environ:
        process(asked)
        return 0
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    ranks = [subprocess.Popen([sys.executable, *sys.argv], env={**shared, "RANK": str(rank)}) for rank in range(2)]
    return max(rank.wait() for rank in ranks)


if __name__ == "__main__":
    sys.exit(main())
