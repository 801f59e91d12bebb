"""INT8 against its peers: how far each moves the same FP32 model, from the same calibration samples, on OpenVINO.

python benchmarks/int8_peers.py CHECKPOINT [--data demo:test] [--labels demo:names] [--peers PYTHON]

Ours is `mmcompress quantize` with its defaults, and the unsigned file of `export`. The peers get our FP32 graph of each
tower, in an environment of their own where NNCF is installed (--peers; by default this one): ONNX Runtime's static
quantization and NNCF's default, both as they come, and NNCF's transformer mode. A peer that is not installed says so.
The prepared graph of ONNX Runtime skips symbolic shapes, on which its pre-processing fails here.
Every row is compared with the FP32 graphs on the same runtime: with its image tower alone, and with both of its towers.
Latency is measured by `make bench` elsewhere; on a CPU without VNNI it says nothing about INT8.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

PEERS_PYTHON = Path(".venv-peers/bin/python")
"""Where `make bench` installs them."""
PEERS = {"ort": "ONNX Runtime static", "nncf": "NNCF default", "nncf-transformer": "NNCF transformer"}
TOWERS = ("image", "text")
Floats = NDArray[np.float32]


def quantize_with_peer(peer: str, graph: Path, samples: Path, out: Path) -> None:
    """Runs in the peer's environment: nothing of ours is imported here."""
    feeds = np.load(samples)
    name, rows = feeds.files[0], feeds[feeds.files[0]]
    if peer == "ort":
        from onnxruntime.quantization import CalibrationDataReader, quantize_static
        from onnxruntime.quantization.shape_inference import quant_pre_process

        class Reader(CalibrationDataReader):  # type: ignore[misc]
            def __init__(self) -> None:
                self.left = iter(rows)

            def get_next(self) -> dict[str, Any] | None:
                row = next(self.left, None)
                return None if row is None else {name: row[None]}

        prepared = out.with_suffix(".prepared.onnx")
        quant_pre_process(str(graph), str(prepared), skip_symbolic_shape=True)
        quantize_static(str(prepared), str(out), Reader())
        return
    import nncf
    import openvino

    mode = {"model_type": nncf.ModelType.TRANSFORMER} if peer == "nncf-transformer" else {}
    dataset = nncf.Dataset([row[None] for row in rows])
    model = nncf.quantize(openvino.Core().read_model(str(graph)), dataset, subset_size=len(rows), **mode)
    openvino.save_model(model, str(out.with_suffix(".xml")), compress_to_fp16=False)


def embedded(graph: Path, inputs: NDArray[Any]) -> Floats:
    """(N, …) -> (N, D) on OpenVINO in FP32."""
    from mmcompress.runtime.openvino import openvino_module

    core = openvino_module().Core()
    compiled = core.compile_model(core.read_model(str(graph)), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return np.concatenate([compiled([inputs[i : i + 32]])[0] for i in range(0, len(inputs), 32)])


def compared(pairs: Any, reference: Any, found: tuple[Floats, Floats]) -> dict[str, float]:
    """Image and text embeddings against those of FP32, by drift's own figures."""
    from mmcompress.runtime.figures import distance, measured

    every = np.arange(len(pairs.keys))
    before = measured(pairs, reference, every)
    after = measured(pairs, replace(reference, images=found[0], texts=found[1]), every)
    figures, _ = distance(after, before)
    return {
        "flips": figures["flip_rate"],
        "p01 cosine": figures["cosine_p01"],
        "mean cosine": figures["cosine_mean"],
        "R@10 drop": -figures["r10_change"]["i2t"],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, nargs="?", default=Path("runs/demo/recover"))
    parser.add_argument("--train", default="demo:train")
    parser.add_argument("--data", default="demo:test")
    parser.add_argument("--labels", default="demo:names")
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--peers", default=str(PEERS_PYTHON if PEERS_PYTHON.exists() else sys.executable))
    parser.add_argument("--quantized", type=Path, help="what `mmcompress quantize` made, if it is there already")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        rows = table(asked, Path(temporary))
    print(f"{'':22} {'towers':>7} {'flips':>8} {'p01 cosine':>11} {'mean cosine':>12} {'R@10 drop':>10}")
    for name, towers, figures in rows:
        if figures is None:
            print(f"{name:22} {towers:>7}  not installed, or it failed: see above")
        else:
            print(
                f"{name:22} {towers:>7} {figures['flips']:8.4f} {figures['p01 cosine']:11.5f} "
                f"{figures['mean cosine']:12.6f} {figures['R@10 drop']:10.4f}"
            )
    return 0


def table(asked: Any, folder: Path) -> list[tuple[str, str, dict[str, float] | None]]:
    from mmcompress import standalone
    from mmcompress.compress.calibrate import _samples
    from mmcompress.config import DataConfig, QuantizeConfig
    from mmcompress.runtime.testset import embed_row

    fp32 = standalone.export(str(asked.checkpoint), folder / "fp32", ("fp32",))
    quantized = asked.quantized or folder / "quantized"
    if not asked.quantized:
        standalone.quantize(asked.checkpoint, quantized, data=asked.train, overrides=[f"samples={asked.samples}"])
    int8 = standalone.export(str(quantized), folder / "int8", ("int8",))
    data = DataConfig(train=asked.train, test=asked.data, labels=asked.labels)
    pairs, row = embed_row(fp32, data, "openvino", 32, None)
    _, ours = embed_row(int8, data, "openvino", 32, pairs)
    rows: list[tuple[str, str, dict[str, float] | None]] = [
        ("mmcompress", "image", compared(pairs, row, (ours.images, row.texts))),
        ("mmcompress", "both", compared(pairs, row, (ours.images, ours.texts))),
    ]
    shown = list(_samples(fp32, QuantizeConfig(data=data, samples=asked.samples)))
    inputs = inputs_of(fp32, data, pairs.texts)
    context = inputs["text"].shape[1]
    calibration = {
        "image": np.concatenate([one.pixels.numpy() for one in shown]),
        "text": np.concatenate([padded(one.tokens.numpy(), context, fp32.tokenizer) for one in shown]),
    }
    for peer, name in PEERS.items():
        found: dict[str, Floats] = {}
        for tower in TOWERS:
            graph, samples = fp32.path / f"{tower}-fp32.onnx", folder / f"{tower}.npz"
            np.savez(samples, **{"pixels" if tower == "image" else "tokens": calibration[tower]})
            out = folder / f"{peer}-{tower}.onnx"
            command = [asked.peers, __file__, "--peer", peer, str(graph), str(samples), str(out)]
            done = subprocess.run(command, check=False, stdout=sys.stderr).returncode == 0
            made = out if out.is_file() else out.with_suffix(".xml")
            if done and made.is_file():
                found[tower] = embedded(made, inputs[tower])
        for towers, texts in (("image", row.texts), ("both", found.get("text"))):
            whole = "image" in found and texts is not None
            rows.append((name, towers, compared(pairs, row, (found["image"], texts)) if whole else None))
    return rows


def inputs_of(artifact: Any, data: Any, texts: list[str]) -> dict[str, NDArray[Any]]:
    """What the graphs are fed for the test pairs: normalized pixels, and the tokens of the candidates."""
    from mmcompress.data import batches
    from mmcompress.runtime.preprocess import normalize
    from mmcompress.runtime.tokenize import load_tokenizer, tokenize

    stream = batches(data.test, artifact.preprocessing, batch=32)
    pixels = np.concatenate([normalize(batch.pixels, artifact.preprocessing) for batch in stream])
    tokenizer = load_tokenizer(artifact.file(artifact.tokenizer.file))
    return {"image": pixels, "text": tokenize(tokenizer, texts, artifact.tokenizer)}


def padded(tokens: NDArray[np.int32], context: int, text: Any) -> NDArray[np.int32]:
    return np.pad(tokens, ((0, 0), (0, context - tokens.shape[1])), constant_values=text.pad_token_id)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--peer"]:
        quantize_with_peer(sys.argv[2], *map(Path, sys.argv[3:6]))
        sys.exit(0)
    sys.exit(main())
