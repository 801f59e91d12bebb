"""Images and texts into one space, with the delivered files: what the answers and the drift table stand on.

An encoder opens the graphs of an artifact on one backend and joins them with the preprocessing and the tokenizer that
the manifest states. Every embedding that leaves it has unit norm, whatever the graph returns. An image graph that has
its preprocessing inside is fed images as they were decoded (`frames.py`), so whoever asks need not know.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self

from mmcompress.artifact import Artifact
from mmcompress.config import Backend, Precision
from mmcompress.data.checkpairs import check_images, judged
from mmcompress.data.preprocess import normalize
from mmcompress.embedding import always_the_same
from mmcompress.errors import CorruptInputError, UsageError
from mmcompress.manifest import VOCABULARY, Kind, Preprocessing, TensorSpec
from mmcompress.progress import say
from mmcompress.runtime.backends import graph_for, open_session, own_backend
from mmcompress.runtime.frames import decoded, framed, read_pixels, stored_decoded, stored_pixels, takes_prepared
from mmcompress.runtime.session import Session, Tower
from mmcompress.runtime.tokenize import attention_mask, load_tokenizer, text_processing, tokenize

_TRIED: set[tuple[str, ...]] = set()
"""What has been warned of by this process: an artifact's digest, a backend, precisions."""
BATCH = 32
"""Images or texts in one call of a session."""


class Encoder:
    """The towers of one artifact on one backend, open until closed. It owns its sessions; results are the caller's."""

    def __init__(self, artifact: Artifact, backend: Backend, precisions: dict[Tower, Precision]) -> None:
        self.artifact = artifact
        self.backend = backend
        self.precisions = precisions
        """Of the graphs that were opened, by tower."""
        self._sessions: dict[Tower, Session] = {}
        self.prepares = False
        """Whether the image graph has the preprocessing inside."""
        self._tokenizer: Any = None
        self._stack = ExitStack()

    @staticmethod
    def open(
        artifact: Artifact | Path | str,
        backend: Backend | None = None,
        precision: Precision | None = None,
        threads: int | None = None,
        towers: Sequence[Tower] = ("image", "text"),
    ) -> Encoder:
        """Open an artifact or the folder of one; the backend is the artifact's, or the first that works here."""
        if not isinstance(artifact, Artifact):
            artifact = Artifact.open(artifact, Kind.ONNX, Kind.ENGINE)
        backend = backend or own_backend(artifact)
        if constant := [tower for tower in towers if tower in artifact.manifest.facts.get("constant", ())]:
            say("", artifact.path.name, f"warning: {always_the_same(constant)}")
        graphs = {tower: graph_for(artifact, tower, backend, precision) for tower in towers}
        encoder = Encoder(artifact, backend, {tower: graph.precision for tower, graph in graphs.items()})
        try:
            for tower, graph in graphs.items():
                session = open_session(artifact, graph, backend, threads=threads)
                encoder._sessions[tower] = encoder._stack.enter_context(session)
                encoder.prepares |= graph.prepares
            if "text" in towers:
                encoder._tokenizer = load_tokenizer(artifact.file(text_processing(artifact).file))
        except BaseException:
            encoder.close()
            raise
        return encoder

    @property
    def preprocessing(self) -> Preprocessing:
        return self.artifact.image_processing

    @property
    def width(self) -> int | None:
        """D, of the embeddings; None where no graph states it."""
        return next(iter(self._sessions.values())).outputs[0].shape[-1]

    @property
    def logit_scale(self) -> float:
        """What cosines are multiplied with before a softmax, exp(t) of Radford et al. 2021, figure 3."""
        scale = self.artifact.manifest.facts.get("logit_scale")
        if not isinstance(scale, (int, float)):
            raise UsageError(
                f"{self.artifact.path} does not state the model's logit scale, so there are no probabilities",
                "export the artifact again, or use `search`, which needs none",
            )
        return float(scale)

    def warn_by_chance(self) -> str | None:
        """Try the drawings that ship, and warn where the model does not put them beside their captions; both towers.

        Raises CorruptInputError for a tower that answers with NaN or zeros. Once for the same graphs and backend, which
        takes as long as some fifty inputs do.
        """
        tried = (self.artifact.digest, self.backend, *self.precisions.values())
        if tried in _TRIED or self._tokenizer is None or "image" not in self._sessions:
            return None
        if self.prepares and not takes_prepared(self._sessions["image"].inputs[0], self.preprocessing):
            return None  # drawings are not of its one size
        if VOCABULARY in self.artifact.manifest.facts:
            return None  # what their captions say may have lost its tokens
        _TRIED.add(tried)
        warning = judged(self.pixels(check_images(self.preprocessing)), self.texts)
        if warning is not None:
            say(
                "",
                self.artifact.path.name,
                f"warning: on {self.backend} this model is no better than chance: {warning}",
            )
        return warning

    def images(self, pixels: NDArray[np.float32], names: Sequence[object] = ()) -> NDArray[np.float32]:
        """(B, 3, S, S) normalized -> (B, D). An error calls the images by their `names`."""
        if self.prepares:
            raise UsageError(
                f"{self.artifact.path} has an image graph that prepares images itself, and these are normalized",
                "give it images as they were decoded, or export the checkpoint without image_input",
            )
        return self._embed("image", pixels, names)

    def pixels(self, pixels: NDArray[np.uint8], names: Sequence[object] = ()) -> NDArray[np.float32]:
        """(B, S, S, 3), resized and cropped -> (B, D)."""
        if self.prepares:
            fed = framed(pixels, self.preprocessing, self._sessions["image"].inputs[0], self.artifact.path)
            return self._embed("image", fed, names)
        return self.images(normalize(pixels, self.preprocessing), names)

    def texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """B texts -> (B, D)."""
        if self._tokenizer is None:
            raise UsageError("this encoder was opened without its text tower", 'open it with towers=("image", "text")')
        tokens = tokenize(self._tokenizer, texts, text_processing(self.artifact))
        return self._embed("text", tokens, [repr(text) for text in texts])

    def image_files(self, paths: Sequence[Path | str]) -> NDArray[np.float32]:
        """B files -> (B, D); UsageError for a path that is no file, CorruptInputError for one that is no image."""
        step = 1 if self.prepares else BATCH  # whole photos are large
        groups = [paths[start : start + step] for start in range(0, len(paths), step)]
        parts = [self.as_read([self.read(path) for path in some], some) for some in groups]
        return np.concatenate(parts) if parts else self.pixels(np.empty((0, *[self.preprocessing.size] * 2, 3), "u1"))

    def read(self, path: Path | str) -> NDArray[np.uint8]:
        """One file -> (S, S, 3), or (H, W, 3) where the graph prepares images; raises as `image_files`."""
        if self.prepares:
            return decoded(Path(path), self.preprocessing, self._sessions["image"].inputs[0])
        return read_pixels(Path(path), self.preprocessing)

    def read_stored(self, content: bytes, name: str) -> NDArray[np.uint8]:
        """As `read`, of the bytes of an image file, which an error calls by its `name`."""
        if self.prepares:
            return stored_decoded(content, name, self.preprocessing, self._sessions["image"].inputs[0])
        return stored_pixels(content, name, self.preprocessing)

    def as_read(self, images: Sequence[NDArray[np.uint8]], names: Sequence[object] = ()) -> NDArray[np.float32]:
        """B images as `read` gives them, one at least -> (B, D)."""
        if not self.prepares:
            return self.pixels(np.stack(images), names)
        alone = [names[i : i + 1] for i in range(len(images))]
        return np.concatenate([self._embed("image", one[None], name) for one, name in zip(images, alone, strict=True)])

    def image_logits(self, path: Path | str) -> NDArray[np.float32]:
        """One file -> (L,): a logit for each label of the bank that the image graph holds.

        Raises UsageError where it holds none, and as `image_files`.
        """
        if self.artifact.manifest.bank is None:
            raise UsageError(
                f"{self.artifact.path} has no labels inside",
                "give some: --labels cat,dog; or put them in: mmcompress export … --bank-labels FILE",
            )
        pixels: NDArray[Any] = self.read(path)[None]
        fed = pixels if self.prepares else normalize(pixels, self.preprocessing)
        (outputs,) = self._run("image", fed, [path])
        return cast(NDArray[np.float32], outputs["logits"][0])

    def _embed(self, tower: Tower, inputs: NDArray[Any], names: Sequence[object] = ()) -> NDArray[np.float32]:
        """`names` are what an error calls the inputs."""
        parts = [unit(outputs[self._sessions[tower].outputs[0].name]) for outputs in self._run(tower, inputs, names)]
        width = self._sessions[tower].outputs[0].shape[-1]
        return np.concatenate(parts) if parts else np.empty((0, width or 0), dtype=np.float32)

    def _run(self, tower: Tower, inputs: NDArray[Any], names: Sequence[object]) -> Iterator[dict[str, NDArray[Any]]]:
        """What a graph answers, in batches that its session takes; embeddings are checked."""
        if tower not in self._sessions:
            raise UsageError(f"this encoder was opened without its {tower} tower", "open it with both towers")
        session = self._sessions[tower]
        step = min(BATCH, session.max_batch or BATCH)
        for start in range(0, len(inputs), step):
            outputs = session.run(tower_feeds(self.artifact, session.inputs, inputs[start : start + step]))
            embeddings = outputs[session.outputs[0].name]
            self._check(
                tower, embeddings, names[start : start + step] or [f"input {start + i}" for i in range(len(embeddings))]
            )
            yield outputs

    def _check(self, tower: Tower, embeddings: NDArray[Any], names: Sequence[object]) -> None:
        """Refuse what has no direction: NaN, infinity or only zeros. (B, D), and what the inputs are called."""
        norms = np.linalg.norm(embeddings.astype(np.float64), axis=-1)
        broken = np.flatnonzero(~(np.isfinite(norms) & (norms > 0)))
        if len(broken):
            what = "zeros only" if norms[broken[0]] == 0 else "numbers that are NaN or infinite"
            raise CorruptInputError(
                f"{self.artifact.path}: the {tower} tower on {self.backend} answers {names[broken[0]]} with {what}",
                "the model is broken, or overflows in this precision: try another one, or export its checkpoint again",
            )

    def close(self) -> None:
        self._stack.close()
        self._sessions.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def tower_feeds(artifact: Artifact, specs: Sequence[TensorSpec], inputs: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """By the inputs of a graph: the first is the tower's; an exporter may add an attention mask as another."""
    feeds: dict[str, NDArray[Any]] = {}
    for index, spec in enumerate(specs):
        if index == 0:
            feeds[spec.name] = inputs.astype(spec.dtype, copy=False)
        elif spec.name == "attention_mask":
            feeds[spec.name] = attention_mask(inputs, text_processing(artifact)).astype(spec.dtype)
        else:
            raise CorruptInputError(
                f"{artifact.path} has a graph with the input {spec.name!r}, which nothing is known about",
                "export it with one input a tower",
            )
    return feeds


def unit(embeddings: NDArray[Any]) -> NDArray[np.float32]:
    """(B, D) -> (B, D) of unit norm; a zero row stays zero."""
    rows = embeddings.astype(np.float32, copy=False)
    norms = np.linalg.norm(rows, axis=-1, keepdims=True)
    return cast(NDArray[np.float32], rows / np.maximum(norms, np.finfo(np.float32).tiny))
