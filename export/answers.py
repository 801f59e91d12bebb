"""An engine that was just built, on eight inputs: finite, and what the FP32 graph answers, or the build fails.

An engine can be wrong in ways that no audit of types sees: a product that overflows, a fusion that reads the wrong
rows. Where the GPU that it is for is in the machine, it is run at once: eight drawings that ship, or their captions,
one by itself and all together, so that both of an engine's profiles take part. The reference is the FP32 graph of the
same artifact on a CPU runtime, or the graph that was built where there is no other. The cosines allowed are far below
what INT8 does to a trained model: this finds what is broken, `drift` says what is lost. Held by stand-ins for sessions;
no GPU has run it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmcompress.artifact import Artifact
from mmcompress.data.checkpairs import check_captions, check_images
from mmcompress.data.preprocess import normalize
from mmcompress.errors import GateFailedError, MissingRequirementError
from mmcompress.manifest import Graph
from mmcompress.progress import say
from mmcompress.runtime.backends import default_backend, open_file
from mmcompress.runtime.encoder import tower_feeds, unit
from mmcompress.runtime.frames import framed, takes_prepared
from mmcompress.runtime.session import Feeds, Session
from mmcompress.runtime.tokenize import load_tokenizer, text_processing, tokenize

INPUTS = 8
LOWEST: Mapping[str, float] = {"fp32": 0.999, "fp16": 0.99}
"""Cosine to the reference that every input has to reach."""
LOWEST_8_BIT = 0.9


def check_answers(source: Artifact, graph: Graph, file: str, open_engine: Callable[[], Session]) -> float | None:
    """The lowest cosine between the answers of an engine and of its reference; None where there is no CPU
    runtime, or only an FP8 graph, which none runs.

    Raises GateFailedError for an engine that answers with NaN or infinity, or otherwise than its reference.
    """
    reference = reference_graph(source, graph)
    if reference.precision == "fp8":
        return None
    try:
        backend = default_backend()
    except MissingRequirementError as error:
        say("build", file, f"warning: nothing was compared with its answers, as {error.what}")
        return None
    with open_file(source.file(reference.file), reference, backend) as session:
        expected = answers(session, source, reference)
    with open_engine() as session:
        found = answers(session, source, graph)
    whole = np.isfinite(found).all(axis=-1)
    if not whole.all():
        raise GateFailedError(
            f"{file} answers {int((~whole).sum())} of {len(found)} inputs with NaN or infinity",
            "its numbers leave FP16: build the FP32 graph, or report this with the artifact's config",
        )
    lowest, limit = float((unit(found) * unit(expected)).sum(axis=-1).min()), LOWEST.get(graph.precision, LOWEST_8_BIT)
    if not lowest >= limit:
        raise GateFailedError(
            f"{file} answers with a cosine of {lowest:.4f} to {reference.file} on {backend}, and the limit is {limit}",
            "the engine computes something else than its graph: update TensorRT, or build another precision",
        )
    return lowest


def warn_without_reference(source: Artifact, graphs: Sequence[Graph]) -> None:
    """Say of each FP8 graph without an FP32 one that nothing will be compared: no CPU runtime computes FP8."""
    for graph in graphs:
        if reference_graph(source, graph).precision == "fp8":
            say(
                "build",
                graph.file,
                "warning: nothing to compare its answers with: export the FP32 graph beside it (--precision fp32,fp8)",
            )


def reference_graph(source: Artifact, graph: Graph) -> Graph:
    """The FP32 graph of the same tower, else the graph itself."""
    same = (one for one in source.manifest.graphs if one.tower == graph.tower and one.precision == "fp32")
    return next(same, graph)


def answers(session: Session, source: Artifact, graph: Graph) -> NDArray[np.float32]:
    """(9, D): of the first input by itself, and of all eight; too small batches are filled up."""
    feeds = inputs_for(source, graph)
    output = session.outputs[0].name
    step = min(INPUTS, session.max_batch or INPUTS)
    parts = [slice(0, 1), *(slice(start, start + step) for start in range(0, INPUTS, step))]
    rows = []
    for part in parts:
        count = len(range(INPUTS)[part])
        places = np.resize(np.arange(INPUTS)[part], max(count, session.min_batch))
        rows.append(session.run({name: array[places] for name, array in feeds.items()})[output][:count])
    return np.concatenate(rows).astype(np.float32).reshape(INPUTS + 1, -1)


def inputs_for(source: Artifact, graph: Graph) -> Feeds:
    """Eight inputs of a graph, by name: drawings or captions as the artifact prepares them."""
    values: NDArray[Any]
    if graph.tower == "image" and source.preprocessing is not None:
        drawings, spec = check_images(source.preprocessing)[:INPUTS], graph.inputs[0]
        if graph.prepares and takes_prepared(spec, source.preprocessing):
            drawings = framed(drawings, source.preprocessing, spec, source.path)
        elif graph.prepares:  # of one other size: drawings beside each other fill it
            _, height, width, _ = (side or 1 for side in spec.shape)
            rows, columns = np.arange(height) % drawings.shape[1], np.arange(width) % drawings.shape[2]
            drawings = drawings[:, rows][:, :, columns]
        values = drawings if graph.inputs[0].dtype == "uint8" else normalize(drawings, source.preprocessing)
    else:
        processing = text_processing(source)
        tokenizer = load_tokenizer(source.file(processing.file))
        values = tokenize(tokenizer, check_captions()[: 2 * INPUTS : 2], processing)
    return tower_feeds(source, graph.inputs, values)
