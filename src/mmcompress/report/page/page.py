"""The page stage: a static site in which the delivered graphs run in the reader's own browser.

What is written is a folder of files that any web server serves: the graphs, the tokenizer, ONNX Runtime's WebAssembly,
our scripts, and no address of another host. The scripts repeat what Python does before a graph, on bytes: the resize of
Pillow and the ids of `tokenizers`; the tests hold both. A graph, the runtime and a tokenizer lie there gzipped, since
few servers compress by themselves; the browser unpacks them.

A page from a file (`file://`) may load neither scripts nor WebAssembly in most browsers, so it is served:
`python -m http.server`. Left out: threads and WebGPU. The first need headers that a folder of files cannot send, the
second has no kernels for most INT8 graphs.
"""

from __future__ import annotations

import gzip
import hashlib
import io
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import cast, get_args

from jinja2 import Environment
from PIL import Image

from mmcompress.artifact import Artifact
from mmcompress.config import PageConfig
from mmcompress.data.batches import read
from mmcompress.data.layout import read_labels
from mmcompress.data.sample import Sample
from mmcompress.data.spec import is_photos
from mmcompress.errors import UsageError
from mmcompress.manifest import VOCABULARY, Graph, Preprocessing
from mmcompress.report.page.document import (
    Input,
    Number,
    PageDocument,
    PageModel,
    Picture,
    Reading,
    Resizing,
    TowerFile,
)
from mmcompress.report.page.npm import PACKAGES, vendored
from mmcompress.report.page.readable import ends, readable
from mmcompress.runtime.backends import graph_for
from mmcompress.runtime.session import Tower
from mmcompress.runtime.tokenize import load_tokenizer, text_processing
from mmcompress.stages import Job
from mmcompress.strictjson import text_from_json
from mmcompress.templates import template_environment

SITE = Path(__file__).parent / "site"
"""What is copied as it is."""
SUFFIXES = {b"\xff\xd8": ".jpg", b"\x89PNG": ".png", b"RIFF": ".webp"}
"""By the begin of an image file."""
_PIECE = 1 << 20


def check_page(config: PageConfig, sources: Mapping[str, Artifact]) -> None:
    """Raise, before anything is fetched or packed, for a model that a browser would answer otherwise with, or not."""
    if config.data.labels is not None:
        read_labels(config.data.labels)
    for artifact in sources.values():
        towers_of(artifact, config)
        tokenizer = load_tokenizer(artifact.file(text_processing(artifact).file))
        where = f"{artifact.path}/{text_processing(artifact).file}"
        readable(tokenizer, where)
        ends(tokenizer, where)


def page(job: Job[PageConfig]) -> None:
    """Stage: index.html with its scripts, page.json, the graphs, and what is needed of npm."""
    config, folder = job.config, job.draft.path
    sources = [job.sources[role] for role in ("graphs", "beside") if role in job.sources]
    models = tuple(_model(one, name, config, folder) for one, name in zip(sources, names(sources), strict=True))
    shown = list(islice(_pictures(config), config.pictures))
    said = [] if config.data.test is None or is_photos(config.data.test) else [sample.captions for sample in shown]
    document = PageDocument(
        title=config.title,
        runtime="vendor/onnxruntime.wasm.gz",
        models=models,
        labels=tuple(
            read_labels(config.data.labels) if config.data.labels else dict.fromkeys(captions[0] for captions in said)
        ),
        queries=tuple(dict.fromkeys(caption for captions in said for caption in captions[:2])),
        pictures=tuple(
            _picture(sample, said[i][0] if said else Path(sample.key).name, i, folder) for i, sample in enumerate(shown)
        ),
    )
    for package in PACKAGES:
        for place, content in vendored(package).items():
            packed = place.endswith(".wasm")
            _write(folder / (f"{place}.gz" if packed else place), _gzipped(content) if packed else content)
    for source in sorted(SITE.glob("*.*")):
        if source.suffix != ".j2":
            _write(folder / source.name, source.read_bytes())
    about = {"document": document, "packages": PACKAGES, "warnings": list(_warnings(sources))}
    for template in ("index.html.j2", "style.css.j2", "NOTICE.txt.j2"):
        text = _templates(escape=template.startswith("index")).get_template(template).render(**about)
        _write(folder / template.removesuffix(".j2"), text.encode())
    _write(folder / "page.json", document.to_json().encode())
    job.draft.facts = {
        "models": {model.name: {"image": model.image.precision, "text": model.text.precision} for model in models},
        "bytes": sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()),
        "packages": {package.name: package.version for package in PACKAGES},
    }


def names(artifacts: Sequence[Artifact]) -> list[str]:
    """What the page calls each: its folder's name, and its number where two are called alike."""
    said = [artifact.path.absolute().name for artifact in artifacts]
    return [name if said.count(name) == 1 else f"{name} {i + 1}" for i, name in enumerate(said)]


def towers_of(artifact: Artifact, config: PageConfig) -> dict[Tower, Graph]:
    """The graphs that the page runs. Raises UsageError for one that it cannot."""
    if not isinstance(artifact.manifest.facts.get("logit_scale"), int | float):
        raise UsageError(
            f"{artifact.path} does not state the model's logit scale, so there are no percentages",
            "export the artifact again",
        )
    found: dict[Tower, Graph] = {}
    for tower in get_args(Tower):
        graph = graph_for(artifact, tower, "onnxruntime", config.precision)
        if graph.prepares:
            raise UsageError(
                f"{graph.file} of {artifact.path} has the preprocessing inside, which the page does by itself",
                "export without --image-input",
            )
        if f"{graph.file}.data" in artifact.manifest.files:
            raise UsageError(
                f"{graph.file} of {artifact.path} is larger than 2 GB, more than a browser takes",
                "make it smaller: mmcompress quantize",
            )
        for index, spec in enumerate(graph.inputs):
            if spec.dtype not in get_args(Number) or (index and spec.name != "attention_mask"):
                raise UsageError(
                    f"{graph.file} of {artifact.path} has an input {spec.name!r} of {spec.dtype}, which no page feeds",
                    "export the checkpoint with mmcompress",
                )
        found[tower] = graph
    return found


def _model(artifact: Artifact, name: str, config: PageConfig, folder: Path) -> PageModel:
    """One model, its files written."""
    processing, rule = text_processing(artifact), artifact.image_processing
    place = f"models/{artifact.digest[:12]}"
    tokenizer = load_tokenizer(artifact.file(processing.file))
    begin, end = ends(tokenizer, str(artifact.path))
    text = text_from_json(readable(tokenizer, str(artifact.path)), compact=True)
    _write(folder / place / "tokenizer.json.gz", _gzipped(text.encode()))
    files: dict[Tower, TowerFile] = {}
    for tower, graph in towers_of(artifact, config).items():
        file = f"{place}/{tower}-{graph.precision}.onnx.gz"
        _write(folder / file, _gzipped(artifact.file(graph.file).read_bytes()))
        inputs = tuple(Input(name=spec.name, dtype=cast(Number, spec.dtype)) for spec in graph.inputs)
        files[tower] = TowerFile(file=file, precision=graph.precision, inputs=inputs, output=graph.outputs[0].name)
    return PageModel(
        name=name,
        digest=artifact.digest,
        scale=float(artifact.manifest.facts["logit_scale"]),
        preprocessing=resizing(rule),
        image=files["image"],
        text=files["text"],
        texts=Reading(
            file=f"{place}/tokenizer.json.gz",
            context=processing.context,
            begin=begin,
            end=end,
            pad=processing.pad_token_id,
            eos=processing.eos_token_id,
            lowercase=processing.lowercase,
            prefix=processing.prefix,
            mask=processing.mask,
        ),
    )


def resizing(rule: Preprocessing) -> Resizing:
    """A rule with the order of passes, of which Pillow is asked: a tall image at once, and along its rows first."""
    tall = Image.frombytes("RGB", (16, 96), hashlib.shake_128(b"").digest(16 * 96 * 3))
    how = Image.Resampling.BICUBIC
    columns_first = tall.resize((8, 48), how) != tall.resize((8, 96), how).resize((8, 48), how)
    return Resizing(**rule.model_dump(), columns_first=columns_first)


def _pictures(config: PageConfig) -> Iterator[Sample]:
    data = config.data
    return iter(()) if data.test is None else read(data.test, max_bad_fraction=data.max_bad_fraction)


def _picture(sample: Sample, called: str, number: int, folder: Path) -> Picture:
    """Its file written; photos of which nothing is said are called by their names."""
    suffix = next(end for begin, end in SUFFIXES.items() if sample.image.startswith(begin))
    file = f"pictures/{number}{suffix}"
    _write(folder / file, sample.image)
    return Picture(file=file, caption=called)


def _warnings(artifacts: Sequence[Artifact]) -> Iterator[str]:
    """What a reader of the page has to know of a model."""
    for artifact in artifacts:
        trimmed = artifact.manifest.facts.get(VOCABULARY)
        if trimmed is not None:
            yield f"{artifact.path.name} knows fewer words than its teacher: other texts may mean nothing to it."


def _templates(escape: bool) -> Environment:
    return template_environment([SITE, SITE.parents[1]], autoescape=escape)


def _gzipped(content: bytes) -> bytes:
    """The same bytes every time. In pieces, since no signal is heard while one is packed."""
    packed = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", compresslevel=9, fileobj=packed, mtime=0) as stream:
        for start in range(0, len(content), _PIECE):
            stream.write(content[start : start + _PIECE])
    return packed.getvalue()


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
