"""CLIP ViT-B/16 and SigLIP 2 of the same image tower, random weights, through the whole way to INT8 and engines.

python benchmarks/families.py [--train SHARD] [--test SHARD] [--pairs 64] [--samples 64] [--uniform] [--small]

Downloads nothing: both are Hugging Face folders that transformers builds, of their true sizes but for the vocabulary.
Each is inherited whole and compared with transformers, pruned to half of its MACs, quantized, exported, measured on
both CPU runtimes against its own FP32, and built by TensorRT-RTX where that is installed. With random weights R@10 is
chance; flips and cosines say how INT8 fares on the architecture, and are to be read beside each other only.
Photos come from the Flickr8k sample of the development data unless other shards are given.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from full_size import write_pairs

from mmcompress.artifact import Artifact
from mmcompress.errors import MMCompressError
from mmcompress.huggingface import dual_encoder_from_hugging_face
from mmcompress.manifest import Preprocessing
from mmcompress.measure.drift.document import DriftDocument
from mmcompress.pipeline import standalone
from mmcompress.processing import save_preprocessing, save_tokenizer_config

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "flickr8k-160"
FAMILIES = ("clip", "siglip")
VOCAB = 4096


def write_teacher(folder: Path, family: str, captions: list[str], small: bool) -> None:
    """A folder of the family with random weights: 12 blocks of width 768 over 16-pixel patches, or a tiny one."""
    import torch
    from transformers import CLIPConfig, CLIPModel, SiglipConfig, SiglipModel

    from mmcompress.compress.train.vocabulary import BEGIN, END, save_tokenizer, tokenizer_from_captions

    folder.mkdir()
    context = 64 if family == "siglip" else 77
    processing = save_tokenizer(tokenizer_from_captions(captions, VOCAB), folder, context)
    if family == "siglip":  # reads its padding, so its tokenizer gives no mask
        save_tokenizer_config(folder, context, bos=BEGIN, eos=END, pad=END, add_prefix_space=True, mask=False)
    blocks, side = (3, 64) if small else (12, 224)

    def tower(width: int) -> dict[str, Any]:
        width = width // 4 if small else width
        heads = width // 64
        return {
            "hidden_size": width,
            "num_attention_heads": heads,
            "intermediate_size": 4 * width,
            "num_hidden_layers": blocks,
        }

    image = {"image_size": side, "patch_size": 16}
    text = {"vocab_size": VOCAB, "max_position_embeddings": context, "eos_token_id": processing.eos_token_id}
    text |= {"pad_token_id": processing.pad_token_id}
    torch.manual_seed(0)
    if family == "siglip":
        model = SiglipModel(SiglipConfig(vision_config=tower(768) | image, text_config=tower(768) | text))
    else:
        sizes = {"vision_config": tower(768) | image, "text_config": tower(512) | text}
        model = CLIPModel(CLIPConfig(projection_dim=512, **sizes))
    model.save_pretrained(folder)
    save_preprocessing(Preprocessing(size=side, resize=side, squash=True, mean=(0.5,) * 3, std=(0.5,) * 3), folder)


def apart_from_transformers(teacher: Path) -> float:
    """Largest difference of unit embeddings between transformers and everything inherited, on random inputs."""
    import torch
    from torch.nn.functional import normalize
    from transformers import AutoModel

    from mmcompress.export.reference import random_inputs

    ours, stock = dual_encoder_from_hugging_face(teacher).eval(), AutoModel.from_pretrained(teacher).eval()
    pixels, tokens = (torch.from_numpy(random_inputs(ours.config, tower, 4)) for tower in ("image", "text"))
    with torch.no_grad():
        images = normalize(stock.get_image_features(pixels), dim=-1) - ours.encode_image(pixels)
        texts = normalize(stock.get_text_features(tokens.long()), dim=-1) - ours.encode_text(tokens)
    return max(float(images.abs().max()), float(texts.abs().max()))


def compressed(folder: Path, teacher: Path, train: Path, asked: argparse.Namespace) -> list[Artifact]:
    """The pruned checkpoint, its graphs in FP32 and those in INT8."""
    share = {"heads": 0.5, "mlp": 0.5} if asked.uniform else {"target_macs": 0.5}
    pruning = {"data.train": str(train), "samples": asked.samples, "batch": 8, **share}
    pruned = standalone.prune(teacher, folder / "half", pruning)
    limits = {"max_drop": 1, "max_flips": 1, "sensitivity": False}
    calibration = {"data.train": str(train), "samples": asked.pairs, "held": asked.pairs, "batch": 8, **limits}
    standalone.quantize(folder / "half", folder / "int8", calibration)
    graphs = (
        standalone.export(str(folder / "int8"), folder / f"onnx-{precision}", {"precisions": (precision,)})
        for precision in ("fp32", "int8")
    )
    return [pruned, *graphs]


def built(graphs: Artifact, out: Path, targets: list[str]) -> str:
    """What TensorRT-RTX made of the INT8 graphs, or why there is nothing."""
    start = time.monotonic()
    try:
        engines = standalone.build(graphs.path, out, {"targets": tuple(targets)})
    except MMCompressError as error:
        return error.what
    counted = [found["modules"] for found in engines.manifest.facts["audit"].values()]
    modules: dict[str, int] = {}
    for found in counted:
        for precision, number in found.items():
            modules[precision] = modules.get(precision, 0) + number
    said = ", ".join(f"{number} Linears {precision}" for precision, number in sorted(modules.items()))
    return f"{said} in {time.monotonic() - start:.0f} s"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=Path, default=DATA / "train-00000.tar")
    parser.add_argument("--test", type=Path, default=DATA / "val-00000.tar")
    parser.add_argument("--pairs", type=int, default=64)
    parser.add_argument("--samples", type=int, default=64, help="pairs that prune sees; its time goes with them")
    parser.add_argument("--uniform", action="store_true", help="prune all blocks alike, which takes no measurements")
    parser.add_argument("--small", action="store_true", help="a quarter of the width, 3 blocks, 64 pixels: to try it")
    parser.add_argument("--targets", nargs="+", default=["sm89"])
    asked = parser.parse_args()
    if not asked.train.is_file() or not asked.test.is_file():
        print(f"skipped: there are no pairs at {asked.train} and {asked.test}")
        return 0
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        train, test = (place / f"{name}-00000.tar" for name in ("train", "test"))
        captions = write_pairs(train, asked.train, asked.pairs)
        write_pairs(test, asked.test, asked.pairs)
        for family in FAMILIES:
            folder = place / family
            folder.mkdir()
            write_teacher(folder / "teacher", family, captions, asked.small)
            apart = apart_from_transformers(folder / "teacher")
            pruned, *graphs = compressed(folder, folder / "teacher", train, asked)
            rows.append(f"{family}: inherited whole, {apart:.1e} from transformers")
            rows.append(f"  pruned to {pruned.manifest.facts['macs_share']:.3f} of its MACs")
            for backend in ("openvino", "onnxruntime"):
                given = {"data.test": str(test), "backend": backend}
                made = standalone.drift([g.path for g in graphs], folder / backend, given)
                found = DriftDocument.read(made.file("drift.json")).rows[-1].metrics
                images = f"flips {found.flip_rate:.3f}, cosine p01 {found.cosine_p01:.5f}"
                rows.append(f"  INT8 on {backend}: {images}, of texts {found.text_cosine_p01:.5f}")
            rows.append(f"  TensorRT-RTX: {built(graphs[-1], folder / 'rtx', asked.targets)}")
    print("\n".join(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
