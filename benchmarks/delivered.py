"""What is delivered beside Linears: preprocessing and labels inside image graphs, and the bytes of the text tower.

python benchmarks/delivered.py answers CHECKPOINT [--photos 100] [--rounds 5]
python benchmarks/delivered.py pixels [--photos 100]
python benchmarks/delivered.py bytes [--merges bpe_simple_vocab_16e6.txt.gz]
python benchmarks/delivered.py drift QUANTIZED

`answers`: a file becomes label scores in two ways that take turns: Pillow, the image tower and a product with the
labels' embeddings, made before; or decoding alone and one graph with preprocessing and labels inside. `pixels`:
preprocessing alone, at 224 pixels, against our own on photos of the development data. `bytes`: the text graph of a
ViT-B/32, whose size does not depend on its weights, with OpenAI's vocabulary from the merges that open_clip ships,
trimmed to captions of the development data. `drift`: what the token table in 8 bits, and in fewer, adds to INT8 of a
quantized checkpoint, on the test set that ships.
"""

from __future__ import annotations

import argparse
import gzip
import statistics
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mmcompress.artifact import Artifact

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "flickr8k-160"
IMAGE = {"width": 768, "head_dim": 64, "heads": (12,) * 12, "mlp": (3072,) * 12, "image_size": 224, "patch": 32}
TEXT = {"width": 512, "head_dim": 64, "heads": (8,) * 12, "mlp": (2048,) * 12}


def photo_files(folder: Path, count: int) -> list[Path]:
    """The first JPEGs of the development data's validation shard."""
    files: list[Path] = []
    with tarfile.open(DATA / "val-00000.tar") as shard:
        for member in shard:
            if member.name.endswith(".jpg") and len(files) < count and (stream := shard.extractfile(member)):
                files.append(folder / f"{len(files):04d}.jpg")
                files[-1].write_bytes(stream.read())
    return files


def answers(checkpoint: str, photos: int, rounds: int) -> None:
    """Same best labels, and milliseconds from a file to scores, both ways."""
    from mmcompress.data.layout import read_labels
    from mmcompress.pipeline import standalone
    from mmcompress.runtime.encoder import Encoder

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        files = photo_files(folder, photos)
        quantized = (Path(checkpoint) / "ranges.json").is_file()
        precisions = ["fp32", "int8"] if quantized else ["fp32"]
        given = {"precisions": precisions}
        inside_given = {**given, "image_input": "any", "bank.labels": "demo:names"}
        plain = standalone.export(checkpoint, folder / "plain", given)
        inside = standalone.export(checkpoint, folder / "inside", inside_given)
        labels = read_labels("demo:names")
        print(f"{len(files)} photos, {len(labels)} labels, medians of {rounds} rounds in turns, ms a file\n")
        print("| runtime | precision | separate | inside | ratio (quartiles) | same label | shares apart |")
        print("|---|---|--:|--:|--:|--:|--:|")
        for backend in ("openvino", "onnxruntime"):
            for precision in precisions:
                with (
                    Encoder.open(plain, backend, precision) as outside,  # type: ignore[arg-type]
                    Encoder.open(plain, backend, "fp32", towers=("text",)) as texts,  # type: ignore[arg-type]
                    Encoder.open(inside, backend, precision, towers=("image",)) as own,  # type: ignore[arg-type]
                ):
                    bank = texts.texts(labels)
                    scale = outside.logit_scale

                    def separate(
                        path: Path, outside: Any = outside, bank: Any = bank, scale: float = scale
                    ) -> np.ndarray[Any, Any]:
                        return scale * (bank @ outside.image_files([path])[0])

                    compared(backend, precision, files, rounds, separate, own.image_logits)


def compared(
    backend: str,
    precision: str,
    files: list[Path],
    rounds: int,
    separate: Callable[[Path], np.ndarray[Any, Any]],
    inside: Callable[[Path], np.ndarray[Any, Any]],
) -> None:
    from mmcompress.runtime.answers import softmax

    same, apart = 0, 0.0
    for path in files:
        a, b = separate(path), inside(path)
        same += int(a.argmax() == b.argmax())
        apart = max(apart, float(np.abs(softmax(a.astype(np.float64)) - softmax(b.astype(np.float64))).max()))
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for path in files[:20]:
            for way, found in zip((separate, inside), times, strict=True):
                start = time.perf_counter()
                way(path)
                found.append(1000 * (time.perf_counter() - start))
    ratios = np.percentile(np.array(times[1]) / np.array(times[0]), [50, 25, 75])
    print(
        f"| {backend} | {precision} | {statistics.median(times[0]):.2f} | {statistics.median(times[1]):.2f}"
        f" | {ratios[0]:.2f} ({ratios[1]:.2f} to {ratios[2]:.2f}) | {same} of {len(files)} | {apart:.1e} |",
        flush=True,
    )


def pixels(photos: int) -> None:
    """Levels of 255 that pixels are apart from Pillow's, on both runtimes."""
    from itertools import islice

    import onnx
    from PIL import Image

    from mmcompress.data.batches import read
    from mmcompress.data.decoding import decode_whole
    from mmcompress.data.preprocess import normalize, plain_view
    from mmcompress.export.export import save_graph, specs
    from mmcompress.export.graph import GraphWriter, Numerics
    from mmcompress.export.imageinput import with_image_input
    from mmcompress.manifest import Graph, Preprocessing
    from mmcompress.runtime.backends import open_file

    rule = Preprocessing(size=224, resize=224, mean=(0.48, 0.46, 0.41), std=(0.27, 0.26, 0.28))
    print("| photos | height x width | runtime | largest, levels | other values | least cosine |")
    print("|---|---|---|--:|--:|--:|")
    for name, spec in (
        ("Flickr8k", DATA / "val-00000.tar"),
        ("ImageNet", DATA.parent / "imagenet-sample/val-00000.tar"),
    ):
        images = [decode_whole(sample.image) for sample in islice(read(str(spec)), photos)]
        wanted = [normalize(plain_view(Image.fromarray(image), rule)[None], rule) for image in images]
        sizes = sorted(image.shape[:2] for image in images)
        for backend in ("openvino", "onnxruntime"):
            g = GraphWriter(18, Numerics())
            g.node("Identity", "embedding", "pixels")
            model = g.model("prepared", ("pixels", np.float32, (3, 224, 224)), 1)
            del model.graph.output[:]
            with_image_input(model, rule, None)
            model.graph.output.append(onnx.helper.make_tensor_value_info("embedding", 1, ["batch", 3, 224, 224]))
            with tempfile.TemporaryDirectory() as temporary:
                path = Path(temporary) / "graph.onnx"
                save_graph(model, path)
                ends = {"inputs": specs(model.graph.input), "outputs": specs(model.graph.output)}
                graph = Graph(file=path.name, tower="image", precision="fp32", **ends)
                with open_file(path, graph, backend, threads=1) as session:  # type: ignore[arg-type]
                    made = [session.run({"image": image[None]})["embedding"] for image in images]
            apart = np.abs(np.concatenate(made) - np.concatenate(wanted)) * np.array(rule.std)[:, None, None] * 255
            pairs = [
                (a.ravel().astype(np.float64), b.ravel().astype(np.float64)) for a, b in zip(made, wanted, strict=True)
            ]
            cosine = min(a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in pairs)
            print(
                f"| {len(images)} of {name} | {sizes[0][0]}x{sizes[0][1]} to {sizes[-1][0]}x{sizes[-1][1]} | {backend}"
                f" | {apart.max():.2f} | {(apart > 0.5).mean():.1e} | {cosine:.6f} |",
                flush=True,
            )


def openai_tokenizer(merges: Path) -> Any:
    """OpenAI's CLIP tokenizer of 49,408 tokens, from its merges."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

    lines = gzip.decompress(merges.read_bytes()).decode().split("\n")[1 : 49152 - 256 - 2 + 1]
    pairs = [tuple(line.split()) for line in lines]
    order = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [chr(byte) for byte in order]
    letters += [chr(256 + place) for place in range(256 - len(order))]
    tokens = [*letters, *(letter + "</w>" for letter in letters), *("".join(pair) for pair in pairs)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocab = {token: id for id, token in enumerate(tokens)}
    made = Tokenizer(models.BPE(vocab, pairs, end_of_word_suffix="</w>", unk_token="<|endoftext|>"))
    made.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    words = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(words), "removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    made.add_special_tokens(["<|startoftext|>", "<|endoftext|>"])
    start, end = ("<|startoftext|>", 49406), ("<|endoftext|>", 49407)
    made.post_processor = processors.TemplateProcessing(single=f"{start[0]} $A {end[0]}", special_tokens=[start, end])
    return made


def captions() -> list[str]:
    from mmcompress.data.batches import read

    return [text for shard in sorted(DATA.glob("*.tar")) for sample in read(str(shard)) for text in sample.captions]


def text_bytes(merges: Path) -> None:
    """Bytes of the text graph of a ViT-B/32: as it was, with the table in 8 bits, and trimmed too."""
    from mmcompress.architecture import DualEncoderConfig
    from mmcompress.export.graph import Numerics
    from mmcompress.export.towers import text_graph
    from mmcompress.export.vocabulary import ids_of_languages, read_otherwise, trimmed, vocabulary_of_texts
    from mmcompress.int8 import linear_modules
    from mmcompress.manifest import TextProcessing

    tokenizer, processing = openai_tokenizer(merges), TextProcessing(context=77, pad_token_id=49407, eos_token_id=49407)
    texts = captions()
    corpus, share = vocabulary_of_texts(tokenizer, texts, processing, (49407,))
    english = trimmed(tokenizer, ids_of_languages(tokenizer, ("en",)), (49407,))
    lost = len(read_otherwise(tokenizer, texts, processing, english)) / len(texts)
    print(f"{len(texts)} captions; of a held-out tenth {share:.1%} are read otherwise by the vocabulary of the rest")
    print(f"of all captions {lost:.1%} are read otherwise by the tokens of Latin script\n")
    print("| text graph | tokens | unsigned, MB | of today's | signed, MB | of today's |")
    print("|---|--:|--:|--:|--:|--:|")
    today: dict[str, int] = {}
    rows = {"INT8, table in float": (49408, False), "INT8, table in 8 bits": (49408, True)}
    rows |= {
        "and the tokens of Latin script": (len(english.kept), True),
        "and the captions' tokens": (len(corpus.kept), True),
    }
    for name, (vocab, table) in rows.items():
        cells = []
        for kind, dtype in (("unsigned", np.float32), ("signed", np.float16)):
            sizes = {
                "embed_dim": 512,
                "image": IMAGE,
                "text": {**TEXT, "vocab": vocab, "context": 77, "eos_token_id": 2},
            }
            config = DualEncoderConfig.model_validate(sizes)
            ranges = {name: {"low": -1.0, "high": 1.0, "absmax": 1.0} for name in linear_modules(config)}
            numerics = Numerics(dtype, kind, ranges, table=table)  # type: ignore[arg-type]
            size = text_graph(config, zeros_of(config), numerics, 19).ByteSize()
            cells += [f"{size / 1e6:.1f}", f"{size / today.setdefault(kind, size):.0%}"]
        print(f"| {name} | {vocab:,} | {' | '.join(cells)} |", flush=True)


def zeros_of(config: Any) -> dict[str, np.ndarray[Any, Any]]:
    """Tensors of the sizes of a config: bytes do not depend on numbers."""
    from mmcompress.tensornames import entries

    return {
        name: np.zeros([side if isinstance(side, int) else 1 for side in shape], np.float32)
        for entry in entries(config, ("text",))
        for name, shape in entry.theirs.items()
    }


def of_levels(table: np.ndarray[Any, Any], levels: int, group: int) -> np.ndarray[Any, Any]:
    """(V, W) -> (V, W): what is left of rows in so many levels, with a scale for each `group` of a row."""
    parts = table.reshape(len(table), -1, group)
    reach = np.abs(parts).max(axis=-1, keepdims=True)
    step = np.where(reach > 0, 2 * reach / (levels - 1), 1)
    steps = np.clip(np.floor(parts / step), -levels // 2, levels // 2 - 1)  # half a level beside 0 on either side
    return ((steps + 0.5) * step).reshape(table.shape).astype(np.float32)


def drift(checkpoint: str) -> None:
    """What the table in 8 bits, and in fewer, adds: cosine and flips against FP32 on the test set that ships."""
    from mmcompress.architecture import WEIGHTS
    from mmcompress.data.batches import batches
    from mmcompress.data.layout import read_labels
    from mmcompress.export.export import VARIANTS, read_int8, read_tensors, write_graph
    from mmcompress.int8 import TABLE_FACT
    from mmcompress.measure.agreement import best, flipped
    from mmcompress.runtime.backends import open_file
    from mmcompress.runtime.encoder import unit
    from mmcompress.runtime.tokenize import load_tokenizer, text_processing, tokenize
    from mmcompress.tensornames import entries

    source = Artifact.open(checkpoint)
    facts = source.manifest.facts
    print(f"the checkpoint says {TABLE_FACT} = {facts.get(TABLE_FACT)}, kept {facts['kept']}\n")
    tensors, int8 = read_tensors(source.path / WEIGHTS), read_int8(source)
    text = text_processing(source)
    tokenizer = load_tokenizer(source.file(text.file))
    assert source.preprocessing is not None
    from mmcompress.data.preprocess import normalize

    images = [
        normalize(batch.pixels, source.preprocessing) for batch in batches("demo:test", source.preprocessing, batch=32)
    ]
    names = tokenize(tokenizer, read_labels("demo:names"), text)
    tokens = [names[start : start + 32] for start in range(0, len(names), 32)]

    (rows,) = next(entry.theirs for entry in entries(source.model, ("text",)) if entry.ours == ("text.tokens.weight",))
    table = tensors[rows]

    def embedded(tower: Any, variant: Any, table: Any = table) -> np.ndarray[Any, Any]:
        with tempfile.TemporaryDirectory() as temporary:
            path = Path(temporary) / "graph.onnx"
            graph = write_graph(path, source.model, {**tensors, rows: table}, tower, variant, 18)
            fed = images if tower == "image" else tokens
            with open_file(path, graph, "onnxruntime", threads=1) as session:
                parts = [session.run({graph.inputs[0].name: one})["embedding"] for one in fed]
        print(f"{tower} {variant.precision} table={variant.numerics.table}: {graph.file}", file=sys.stderr)
        return unit(np.concatenate(parts))

    fp32 = VARIANTS[0]
    unsigned = next(v for v in VARIANTS if v.numerics.activations == "unsigned")
    exact = embedded("image", fp32), embedded("text", fp32)
    moved = embedded("image", replace(unsigned, numerics=int8["unsigned"]))
    print("| text tower | 1 - cosine | images of which another label is best |")
    print("|---|--:|--:|")
    float_table = replace(unsigned, numerics=replace(int8["unsigned"], table=False))
    byte_table = replace(unsigned, numerics=replace(int8["unsigned"], table=True))
    alone = replace(fp32, numerics=replace(fp32.numerics, table=True))
    for name, variant, stored in (
        ("FP32, table in 8 bits", alone, table),
        ("FP32, 64 levels, a scale for 32", fp32, of_levels(table, 64, 32)),
        ("FP32, 40 levels, a scale a row", fp32, of_levels(table, 40, table.shape[1])),
        ("FP32, 16 levels, a scale for 32", fp32, of_levels(table, 16, 32)),
        ("INT8, table in float", float_table, table),
        ("INT8, table in 8 bits", byte_table, table),
        ("INT8, 40 levels, a scale a row", float_table, of_levels(table, 40, table.shape[1])),
    ):
        found = embedded("text", variant, stored)
        own = moved if name.startswith("INT8") else exact[0]
        flips = flipped(*exact, best(*exact), best(own, found))
        print(f"| {name} | {1 - (exact[1] * found).sum(axis=1).mean():.2e} | {flips.mean():.2%} |", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked = parser.add_subparsers(dest="what", required=True)
    one = asked.add_parser("answers")
    one.add_argument("checkpoint")
    one.add_argument("--photos", type=int, default=100)
    one.add_argument("--rounds", type=int, default=5)
    asked.add_parser("pixels").add_argument("--photos", type=int, default=100)
    asked.add_parser("bytes").add_argument("--merges", type=Path, required=True)
    asked.add_parser("drift").add_argument("checkpoint")
    said = parser.parse_args()
    if said.what == "drift":
        drift(said.checkpoint)
    elif not DATA.is_dir():
        print(f"skipped: the development data is not at {DATA}")
    elif said.what == "pixels":
        pixels(said.photos)
    elif said.what == "answers":
        answers(said.checkpoint, said.photos, said.rounds)
    else:
        text_bytes(said.merges)
    return 0


if __name__ == "__main__":
    sys.exit(main())
