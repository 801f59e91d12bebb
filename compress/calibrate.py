"""Calibration: the range of what goes into every Linear, from real samples, in memory that does not grow with them.

Every Linear input keeps one histogram over [-r, r]; when a batch exceeds r, r doubles and neighbouring bins merge, so
the counts stay exact and only their resolution falls. `minmax` covers everything that was seen; `percentile` leaves out
the rarest magnitudes, which spends the 256 levels on the rest (Wu et al. 2020, "Integer Quantization for Deep Learning
Inference", section 4.2). The ranges go into `ranges.json`; the exporter turns them into Q/DQ for the target: signed
symmetric for TensorRT, unsigned with a zero point for x86 CPUs.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice

import torch
from torch import Tensor, nn

from mmcompress.artifact import Artifact
from mmcompress.compress.augment import normalized
from mmcompress.compress.pairs import trimmed
from mmcompress.config import QuantizeConfig
from mmcompress.data import batches
from mmcompress.distributed import world
from mmcompress.errors import UsageError
from mmcompress.model import DualEncoder, dual_encoder_from_checkpoint
from mmcompress.pipeline import Job
from mmcompress.progress import track
from mmcompress.runtime.tokenize import load_tokenizer, tokenize

BINS = 8192


class Histogram:
    """Streaming histogram of a tensor's values over [-limit, limit], with the exact extremes beside it."""

    def __init__(self) -> None:
        self.limit = 0.0
        self.counts = torch.zeros(BINS, dtype=torch.float64)
        self.low = float("inf")
        self.high = float("-inf")

    def add(self, values: Tensor) -> None:
        values = values.detach().float().flatten()
        low, high = (v.item() for v in torch.aminmax(values))
        self.low, self.high = min(self.low, low), max(self.high, high)
        self._reach(max(-low, high))
        if self.limit:
            self.counts += torch.histc(values, BINS, -self.limit, self.limit).double().cpu()

    def _reach(self, magnitude: float) -> None:
        if not self.limit:
            self.limit = magnitude
        while self.limit < magnitude:
            merged = self.counts.view(-1, 2).sum(dim=1)
            self.counts = torch.zeros_like(self.counts)
            self.counts[BINS // 4 : BINS // 4 * 3] = merged
            self.limit *= 2

    def magnitude(self, percentile: float) -> float:
        """The smallest |x| that covers `percentile` percent of all values, to one bin."""
        folded = self.counts[BINS // 2 :] + self.counts[: BINS // 2].flip(0)
        covered = folded.cumsum(0) / folded.sum()
        index = int(torch.searchsorted(covered, torch.tensor(percentile / 100, dtype=covered.dtype)))
        return self.limit * (min(index, len(folded) - 1) + 1) / len(folded)


def ranges_of(histogram: Histogram, method: str, percentile: float) -> dict[str, float]:
    """`low`, `high` and `absmax` of the values to represent; low <= 0 <= high, as a zero must stay a zero."""
    reach = max(-histogram.low, histogram.high, 0.0)
    if method == "percentile" and histogram.limit:
        reach = min(reach, histogram.magnitude(percentile))
    low, high = max(min(histogram.low, 0.0), -reach), min(max(histogram.high, 0.0), reach)
    return {"low": low, "high": high, "absmax": reach}


def quantize(job: Job[QuantizeConfig]) -> None:
    """Stage: calibrate a checkpoint; the weights stay FP32, `ranges.json` is added."""
    config, source = job.config, job.sources["checkpoint"]
    if config.data.train is None:
        raise UsageError("quantize needs samples to calibrate on", "set data.train, or give --data")
    model = dual_encoder_from_checkpoint(source.path, source.model)
    with world(config.device) as here:
        histograms = calibrate(model.to(here.device), _samples(source, config), here.device)
    ranges = {name: ranges_of(found, config.method, config.percentile) for name, found in histograms.items()}
    for name in source.manifest.files:
        shutil.copyfile(source.file(name), job.draft.path / name)
    job.draft.inherit(source)
    (job.draft.path / "ranges.json").write_text(json.dumps(ranges, indent=1), encoding="utf-8")
    job.draft.facts = {"params": source.model.params, "macs": source.model.macs, "linears": len(ranges)}


def calibrate(
    model: DualEncoder, samples: Iterable[tuple[Tensor, Tensor]], device: torch.device
) -> dict[str, Histogram]:
    """Run (pixels (B, 3, S, S), tokens (B', T)) through both towers; return a histogram for each Linear's input."""
    histograms = {name: Histogram() for name, _ in model.linears()}
    with torch.inference_mode(), _watched(model, lambda name, x: histograms[name].add(x)):
        for pixels, tokens in samples:
            model.encode_image(pixels.to(device))
            model.encode_text(tokens.to(device))
    return histograms


@contextmanager
def _watched(model: DualEncoder, see: Callable[[str, Tensor], None]) -> Iterator[None]:
    def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda _, arguments: see(name, arguments[0])

    handles = [linear.register_forward_pre_hook(hook(name)) for name, linear in model.linears()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _samples(source: Artifact, config: QuantizeConfig) -> Iterator[tuple[Tensor, Tensor]]:
    """Plain images and all their captions, `config.samples` pairs of them, shuffled over the shards."""
    preprocessing, text = source.preprocessing, source.tokenizer
    assert config.data.train is not None and preprocessing is not None and text is not None
    tokenizer = load_tokenizer(source.file(text.file))
    stream = batches(
        config.data.train,
        preprocessing,
        batch=config.batch,
        workers=config.data.workers,
        max_bad_fraction=config.data.max_bad_fraction,
        shuffle_seed=config.seed,
    )
    steps = -(-config.samples // config.batch)
    for batch in track(islice(stream, steps), "calibrating", steps):
        pixels = torch.from_numpy(batch.pixels).permute(0, 3, 1, 2).float() / 255
        texts = [caption for captions in batch.captions for caption in captions]
        tokens = trimmed(tokenize(tokenizer, texts, text), text.eos_token_id)
        yield normalized(pixels, preprocessing), torch.from_numpy(tokens)
