"""The quantize stage: from a checkpoint in float to one that says how it is computed in integers.

The weights that are saved stay float, with SmoothQuant folded in where it helps, so the checkpoint is what it was to
everything that reads one. Beside them `ranges.json` has the activation range of every Linear, which can be compared
between runs, and `integers.safetensors` the int8 weights, scales and biases of both kinds of graph: signed for
TensorRT, unsigned for x86 CPUs. A Linear that is in neither stays in float. The ranges of what the attention products
multiply are there too, for `verdict`, which tries those products in INT8; `export` leaves them in float. The table of
token embeddings becomes integers as well, one scale a row, by plain rounding, so that no file holds it; it is judged
with the rest, and may stay in float like a Linear.

Two passes over the data. The first batches are held in memory, to fit and to judge; all samples go through the
histograms. So memory does not grow with the number of samples. What INT8 loses is judged on validation pairs where
there are any: a model is surer of what it was trained on, and loses less there. Photos without captions will do: the
text tower is then calibrated on sentences that ship, and what was right is what the float model answers among them.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache

import torch
from safetensors.numpy import save_file
from torch import Tensor

from mmcompress.architecture import NEVER_COMPRESSED, WEIGHTS, TowerConfig
from mmcompress.budget import Cost
from mmcompress.compress.heap import keep_freed_memory
from mmcompress.compress.int8.convfit import FittedConvolutions, fit_convolutions
from mmcompress.compress.int8.fit import JUDGED, chosen_ranges, chosen_smoothing, chosen_weights, drift_of_both
from mmcompress.compress.int8.ranges import NOTHING, Histogram, widened
from mmcompress.compress.int8.record import fit_facts
from mmcompress.compress.int8.samples import (
    Captioned,
    feeds,
    filled_up,
    fitting_and_judging,
    held_pairs,
    images_in,
    noting,
    plain_pairs,
    possible_answers,
    validating,
    warn_of_few,
)
from mmcompress.compress.int8.sensitivity import RANKED, kept_in_float, sensitivities
from mmcompress.compress.int8.simulate import (
    Batches,
    Feeds,
    as_table,
    distance,
    embedded,
    observing,
    observing_attention,
    quantizing,
    table_in_integers,
)
from mmcompress.compress.prune.semistructured import SPARSE
from mmcompress.config import QuantizeConfig
from mmcompress.convnet import ConvConfig
from mmcompress.distributed import world
from mmcompress.errors import UsageError
from mmcompress.export.integers import OUTPUT
from mmcompress.huggingface import dual_encoder_from_checkpoint, save_checkpoint
from mmcompress.int8 import (
    INTEGERS,
    RANGES,
    TABLE,
    TABLE_FACT,
    IntegerLinear,
    Linears,
    Range,
    Signedness,
    read_ranges,
    tensors_from_linears,
)
from mmcompress.model import DualEncoder
from mmcompress.progress import say
from mmcompress.runtime.tokenize import text_processing
from mmcompress.seen import seen_images, write_seen_images
from mmcompress.stages import Job
from mmcompress.strictjson import write_json
from mmcompress.twins import FLOAT_MODEL, float_model

COMPARED = 1 << 14
"""Numbers in the embeddings, over all pairs, that smoothing, ranges, roundings and biases are compared on."""


INPUTS = 256
"""Of each Linear, of the first batches, that the methods of its range are compared on."""


@dataclass(frozen=True)
class Calibration:
    """What calibration saw."""

    histograms: Mapping[str, Histogram]
    """Of each Linear's inputs."""
    inputs: Mapping[str, Tensor]
    """Some of each Linear's inputs, (rows, in)."""
    operands: Mapping[str, Range]
    """Of what the attention products multiply."""


@dataclass(frozen=True)
class Fitted:
    """Everything that a checkpoint needs to become INT8."""

    model: DualEncoder
    ranges: Mapping[str, Range]
    linears: Mapping[Signedness, Linears]
    choices: Mapping[str, object]
    convolutions: FittedConvolutions | None = None
    """Of an image tower that has no Linears."""


def quantize(job: Job[QuantizeConfig]) -> None:
    """Stage: calibrate a checkpoint and fit its integers."""
    config, source, spec = job.config, job.sources["checkpoint"], job.config.data.train
    if spec is None:
        raise UsageError("quantize needs samples to calibrate on", "set data.train, or give --data")
    keep_freed_memory()
    model = dual_encoder_from_checkpoint(source.path, source.model)
    if "text" not in model.config.compressed:
        say("", "text", NEVER_COMPRESSED)
    with world(config.device) as here:
        model = model.to(here.device)
        held = held_pairs(source, spec, config)
        fitting, judging, judged_on = fitting_and_judging(held)
        reused = job.sources.get("ranges")
        seen = images_in(held) | (seen_images(reused) or set() if reused else set())

        def pairs() -> Iterator[Captioned]:
            return noting(plain_pairs(source, spec, config, "calibrating"), seen)

        given = None if reused is None else read_ranges(reused)
        fitted = fit_integers(model, feeds(fitting), feeds(judging), pairs, config, given)
        if isinstance(model.config.image, ConvConfig):
            few_judging = feeds(judging).first(compared(model)).image
            pixels = (one.pixels for one in pairs())
            fitted = with_convolutions(
                fitted, fit_convolutions(source, job.work, pixels, feeds(fitting).image, few_judging, config, given)
            )
        deciding = judging
        if (validation := config.data.validation) is not None:
            deciding, judged_on = validating(held_pairs(source, validation, config), seen, validation)
        warn_of_few(config, (one.pixels.numpy() for one in deciding), filled_up(held, text_processing(source)))
        answers = possible_answers(source, config, held)
        ranking, kept, left = keep_sensitive(fitted, judging, deciding, answers, config)
        linears = {kind: without(of_kind, kept) for kind, of_kind in fitted.linears.items()}
        table = TABLE in possible_tables(model) and TABLE not in kept
        few = feeds(judging).first(compared(model))
        drift = drift_of_both(fitted.model, few, linears, fitted.ranges, table)
        if fitted.convolutions is not None:
            for kind, moved in fitted.convolutions.drifts(few.image, kept).items():
                drift[kind]["image"] = moved
    smoothed = fitted.model is not model
    for name in source.manifest.files:
        if not (smoothed and name == WEIGHTS):
            shutil.copyfile(source.file(name), job.draft.path / name)
    if smoothed:
        save_checkpoint(fitted.model.cpu(), job.draft.path)
    job.draft.inherit(source)
    ranges = {name: ends for name, ends in fitted.ranges.items() if name.removesuffix(f".{OUTPUT}") not in kept}
    write_json(job.draft.path / RANGES, ranges)
    save_file(tensors_from_linears(linears), job.draft.path / INTEGERS)
    write_seen_images(job.draft.path, seen)
    job.draft.facts = {
        "params": source.model.params,
        "macs": source.model.macs,
        "linears": len(linears[JUDGED]),
        FLOAT_MODEL: float_model(source),
        **fit_facts(config, spec, fitted.choices, ranking, kept, judged_on),
        **({TABLE_FACT: "int8"} if table else {}),
        **{name: fact for name, fact in source.manifest.facts.items() if name == SPARSE},
    }
    job.draft.metrics = {"calibration": {"drift": drift, **(asdict(left) if left else {})}}


def fit_integers(
    model: DualEncoder,
    fitting: Feeds,
    judging: Feeds,
    samples: Callable[[], Iterable[Captioned]],
    config: QuantizeConfig,
    given: Mapping[str, Range] | None = None,
) -> Fitted:
    """Smooth, calibrate and round both towers, each technique where it lowers the drift.

    Techniques are compared on the first few pairs: a drift is a mean over every dimension as well, while hits and
    flips, which decide what stays in float, need all. With `given` ranges the model stays as it is, since they
    are of its activations unsmoothed, and is only rounded.
    """
    towers = [name for name in model.config.compressed if isinstance(getattr(model.config, name), TowerConfig)]
    few_fitting, few_judging = fitting.first(compared(model)), judging.first(compared(model))
    references = {tower: embedded(model, tower, few_judging.of(tower)) for tower in towers}
    choices: dict[str, dict[str, object]] = {tower: {} for tower in towers}
    ranges = dict(given or {})
    if given is None:
        for tower in towers:
            if config.smooth:
                model, choices[tower]["smooth"] = chosen_smoothing(
                    model, tower, few_fitting.of(tower), few_judging.of(tower), references[tower], config
                )
        seen = calibrate(model, samples())
        ranges = dict(seen.operands)
        for tower in towers:
            tower_ranges, choices[tower]["ranges"] = chosen_ranges(model, seen.histograms, seen.inputs, tower, config)
            ranges |= tower_ranges
    linears: dict[Signedness, dict[str, IntegerLinear]] = {"signed": {}, "unsigned": {}}
    for tower in towers:
        rounded, chosen = chosen_weights(
            model, ranges, tower, fitting.of(tower), few_judging.of(tower), references[tower], config
        )
        for kind, named in rounded.items():
            linears[kind] |= named
        choices[tower] |= chosen
    return Fitted(model, ranges, linears, choices)


def with_convolutions(fitted: Fitted, convolutions: FittedConvolutions) -> Fitted:
    """The same with a convolutional image tower beside the Linears of the text tower."""
    own = convolutions.fitted
    linears = {kind: {**own.linears[kind], **named} for kind, named in fitted.linears.items()}
    choices = {**fitted.choices, "image": own.choices}
    return Fitted(fitted.model, {**fitted.ranges, **own.ranges}, linears, choices, convolutions)


def compared(model: DualEncoder) -> int:
    """Pairs that make `COMPARED` numbers."""
    return -(-COMPARED // model.config.embed_dim)


def calibrate(model: DualEncoder, samples: Iterable[Captioned]) -> Calibration:
    """Run pairs through both towers."""
    histograms = {name: Histogram() for name, _ in model.linears()}
    inputs: dict[str, Tensor] = {}
    operands: dict[str, Range] = {}

    def see(name: str, x: Tensor) -> None:
        histograms[name].add(x)
        if (known := len(inputs.get(name, ()))) < INPUTS:
            some = x[:: max(1, len(x) // (INPUTS - known))]
            inputs[name] = torch.cat([inputs[name], some]) if known else some.clone()

    def widen(name: str, x: Tensor) -> None:
        operands[name] = widened(operands.get(name, NOTHING), x)

    with observing(model, see), observing_attention(model, widen):
        for pairs in samples:
            embedded(model, "image", [pairs.pixels])
            embedded(model, "text", [pairs.tokens])
    return Calibration(histograms, inputs, operands)


def keep_sensitive(
    fitted: Fitted, ranked: Sequence[Captioned], judged: Sequence[Captioned], answers: Batches, config: QuantizeConfig
) -> tuple[Mapping[str, float], frozenset[str], Cost | None]:
    """The ranking of the Linears, those that stay in float, and what INT8 costs all the same.

    Images that are `judged` choose between their captions and the answers, which are batches of tokens.
    """
    if not config.sensitivity:
        return {}, frozenset(config.keep), None
    model, ranges, linears = fitted.model, fitted.ranges, fitted.linears[JUDGED]
    tables = possible_tables(model)
    own = feeds(judged).text
    fed = Feeds(feeds(judged).image, [*own, *(one for one in answers if not any(one is text for text in own))])

    @cache
    def embeddings(tower: str, kept: frozenset[str]) -> Tensor:
        own = {name: linear for name, linear in linears.items() if name.startswith(f"{tower}.")}
        if tower == "image" and fitted.convolutions is not None:
            return fitted.convolutions.embedded(fed.image, kept)
        rounded = tower == "text" and not kept.issuperset(tables)
        with quantizing(model, without(own, kept), ranges, JUDGED), as_table(model, rounded):
            return embedded(model, tower, fed.of(tower))

    @cache
    def ranking() -> Mapping[str, float]:
        few = feeds(ranked).first(RANKED)
        convolved = fitted.convolutions.sensitivities(few.image) if fitted.convolutions is not None else {}
        others = {name: linear for name, linear in linears.items() if name not in convolved}
        drifts = (
            convolved
            | sensitivities(model, few, others, ranges, JUDGED)
            | {name: table_drift(model, few) for name in tables}
        )
        return dict(sorted(drifts.items(), key=lambda item: (-item[1], item[0])))

    kept, left = kept_in_float(embeddings, [*linears, *tables], ranking, config)
    return ranking() if left else {}, kept, left


def possible_tables(model: DualEncoder) -> tuple[str, ...]:
    """`TABLE` where the text tower is one that is compressed."""
    return (TABLE,) if "text" in model.config.compressed else ()


def table_drift(model: DualEncoder, judging: Feeds) -> float:
    """Distance of the texts' embeddings with the table alone in integers."""
    reference = embedded(model, "text", judging.text)
    with table_in_integers(model):
        return distance(reference, embedded(model, "text", judging.text))


def without(linears: Linears, kept: frozenset[str]) -> Linears:
    return {name: linear for name, linear in linears.items() if name not in kept}
