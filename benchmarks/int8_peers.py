"""INT8 against its peers: how far each moves the same FP32 model, from the same calibration samples, and its speed.

python benchmarks/int8_peers.py [CHECKPOINT] [--data demo:test] [--labels demo:names]

Ours is `mmcompress quantize` with its defaults, and the unsigned file of `export`. The peers get our FP32 graph of each
tower, in environments of their own (`make bench` installs them; one that is not there says so): ONNX Runtime's static
quantization, NNCF's default and its transformer mode, NVIDIA Model Optimizer, all as they come, but for two things
without which they fail or would be at a disadvantage here: ONNX Runtime's pre-processing skips symbolic shapes, and
Model Optimizer leaves the rest in FP32, where its default is FP16, which is for GPUs.

Every row is compared with the FP32 graphs on OpenVINO: with its image tower alone, and with both of its towers. A graph
that OpenVINO refuses is run on ONNX Runtime, and has no latency. Latency is of the image tower at batch 1 on OpenVINO,
all in one interleaved run, and ratios are to ours.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

PEERS = {
    "ort": ("ONNX Runtime static", ".venv-peers"),
    "nncf": ("NNCF default", ".venv-peers"),
    "nncf-transformer": ("NNCF transformer", ".venv-peers"),
    "modelopt": ("ModelOpt default", ".venv-modelopt"),
}
"""With the environments that `make bench` makes."""
ROUNDS = 12
ROUND_S = 0.3
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
    if peer == "modelopt":
        from modelopt.onnx.quantization import quantize

        feeds_of = {name: rows}
        quantize(
            str(graph),
            calibration_data=feeds_of,
            output_path=str(out),
            high_precision_dtype="fp32",
            calibration_eps=["cpu"],
        )
        return
    import nncf
    import openvino

    mode = {"model_type": nncf.ModelType.TRANSFORMER} if peer == "nncf-transformer" else {}
    dataset = nncf.Dataset([row[None] for row in rows])
    model = nncf.quantize(openvino.Core().read_model(str(graph)), dataset, subset_size=len(rows), **mode)
    openvino.save_model(model, str(out.with_suffix(".xml")), compress_to_fp16=False)


def embedded(graph: Path, inputs: NDArray[Any]) -> tuple[Floats, bool]:
    """(N, …) -> (N, D) on OpenVINO in FP32; where it refuses the graph, on ONNX Runtime, which is said."""
    from mmcompress.runtime.onnxruntime import onnxruntime_module
    from mmcompress.runtime.openvino import openvino_module

    parts = [inputs[i : i + 32] for i in range(0, len(inputs), 32)]
    core = openvino_module().Core()
    try:
        compiled = core.compile_model(core.read_model(str(graph)), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    except RuntimeError as error:
        print(f"OpenVINO refuses {graph.name}: {str(error).strip().splitlines()[-1]}", file=sys.stderr)
        session = onnxruntime_module().InferenceSession(str(graph), providers=["CPUExecutionProvider"])
        (name,) = (value.name for value in session.get_inputs())
        return np.concatenate([session.run(None, {name: part})[0] for part in parts]), False
    return np.concatenate([compiled([part])[0] for part in parts]), True


def compared(pairs: Any, reference: Any, found: tuple[Floats, Floats]) -> dict[str, float]:
    """Image and text embeddings against those of FP32, by drift's own figures."""
    from mmcompress.measure.drift.figures import answers_of, distance

    every = np.arange(len(pairs.keys))
    before = answers_of(pairs, reference, every)
    after = answers_of(pairs, replace(reference, images=found[0], texts=found[1]), every)
    figures, _ = distance(after, before)
    return {
        "flips": figures.flip_rate,
        "p01 cosine": figures.cosine_p01,
        "mean cosine": figures.cosine_mean,
        "R@10 drop": -figures.r10_change.i2t,
    }


@dataclass(frozen=True, eq=False)
class File:
    """A graph of anybody's with the interface of ours, to be timed."""

    path: Path
    graph: Any
    threads: int

    @property
    def memory_bytes(self) -> int:
        return 3 * sum(file.stat().st_size for file in self.path.parent.glob(f"{self.path.stem}*"))

    def open(self) -> Any:
        from mmcompress.runtime.backends import open_file

        return open_file(self.path, self.graph, "openvino", threads=self.threads)


def raced(files: dict[str, File]) -> dict[str, tuple[float, Any]]:
    """Median milliseconds of each, and how many times as fast it is as the first."""
    from mmcompress.measure.estimate import paired_speedup
    from mmcompress.measure.interleave import Record, add_round
    from mmcompress.runtime.scheduling import realtime

    records = [Record() for _ in files]
    with realtime():
        for number in range(ROUNDS):
            add_round(records, [(file, 1) for file in files.values()], ROUND_S, number)
    first = records[0].rounds
    return {
        name: (float(np.median(record.calls)), paired_speedup(record.rounds, first))
        for name, record in zip(files, records, strict=True)
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, nargs="?", default=Path("runs/demo/recover"))
    parser.add_argument("--train", default="demo:train")
    parser.add_argument("--data", default="demo:test")
    parser.add_argument("--labels", help="demo:names for the demo if not given")
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--environments", type=Path, default=Path(), help="folder that the peers' environments are in")
    parser.add_argument("--quantized", type=Path, help="what `mmcompress quantize` made, if it is there already")
    asked = parser.parse_args()
    if not asked.checkpoint.is_dir():
        print(f"not measured: there is no {asked.checkpoint}; run `make demo`, or give a checkpoint")
        return 0
    asked.labels = asked.labels or ("demo:names" if asked.data.startswith("demo:") else None)
    with tempfile.TemporaryDirectory() as temporary:
        rows, files = table(asked, Path(temporary))
        times = raced(files)
    print(f"{'':22} {'towers':>7} {'flips':>8} {'p01 cosine':>11} {'mean cosine':>12} {'R@10 drop':>10}")
    for name, towers, figures in rows:
        if figures is None:
            print(f"{name:22} {towers:>7}  not installed, or it failed: see above")
        else:
            print(
                f"{name:22} {towers:>7} {figures['flips']:8.4f} {figures['p01 cosine']:11.5f} "
                f"{figures['mean cosine']:12.6f} {figures['R@10 drop']:10.4f}"
            )
    print(f"\n{'image tower, batch 1':22} {'ms':>7} {'ours / theirs':>14}")
    for name, (milliseconds, ratio) in times.items():
        print(f"{name:22} {milliseconds:7.3f} {ratio.speedup:8.3f} [{ratio.low:.3f}, {ratio.high:.3f}]")
    return 0


def table(asked: Any, folder: Path) -> tuple[list[tuple[str, str, dict[str, float] | None]], dict[str, File]]:
    from mmcompress.compress.int8.samples import plain_pairs
    from mmcompress.config import DataConfig, QuantizeConfig
    from mmcompress.measure.drift.testset import embed_row
    from mmcompress.pipeline import standalone

    fp32 = standalone.export(str(asked.checkpoint), folder / "fp32", {"precisions": ("fp32",)})
    quantized = asked.quantized or folder / "quantized"
    if not asked.quantized:
        standalone.quantize(asked.checkpoint, quantized, {"data.train": asked.train, "samples": asked.samples})
    int8 = standalone.export(str(quantized), folder / "int8", {"precisions": ("int8",)})
    data = DataConfig(train=asked.train, test=asked.data, labels=asked.labels)
    pairs, row = embed_row(fp32, data, "openvino", 32, None)
    _, ours = embed_row(int8, data, "openvino", 32, pairs)
    from mmcompress.runtime.backends import graph_for
    from mmcompress.runtime.machine import usable_cores

    graphs = [graph_for(artifact, "image", "openvino") for artifact in (int8, fp32)]
    files = {
        name: File(artifact.path / graph.file, graph, usable_cores())
        for name, artifact, graph in zip(("mmcompress", "FP32"), (int8, fp32), graphs, strict=True)
    }
    rows: list[tuple[str, str, dict[str, float] | None]] = [
        ("mmcompress", "image", compared(pairs, row, (ours.images, row.texts))),
        ("mmcompress", "both", compared(pairs, row, (ours.images, ours.texts))),
    ]
    shown = list(plain_pairs(fp32, asked.train, QuantizeConfig(data=data, samples=asked.samples)))
    inputs = inputs_of(fp32, data, pairs.texts)
    context = inputs["text"].shape[1]
    calibration = {
        "image": np.concatenate([one.pixels.numpy() for one in shown]),
        "text": np.concatenate([padded(one.tokens.numpy(), context, fp32.tokenizer) for one in shown]),
    }
    for peer, (name, environment) in PEERS.items():
        found: dict[str, Floats] = {}
        python = asked.environments / environment / "bin" / "python"
        if not python.exists():
            print(f"{name}: there is no {python}, `make bench` makes it", file=sys.stderr)
        for tower in TOWERS:
            graph, samples = fp32.path / f"{tower}-fp32.onnx", folder / f"{tower}.npz"
            np.savez(samples, **{"pixels" if tower == "image" else "tokens": calibration[tower]})
            out = folder / f"{peer}-{tower}.onnx"
            command = [str(python), __file__, "--peer", peer, str(graph), str(samples), str(out)]
            done = python.exists() and subprocess.run(command, check=False, stdout=sys.stderr).returncode == 0
            made = out if out.is_file() else out.with_suffix(".xml")
            if done and made.is_file():
                found[tower], runs = embedded(made, inputs[tower])
                if tower == "image" and runs:
                    files[name] = File(made, graphs[1], usable_cores())
        for towers, texts in (("image", row.texts), ("both", found.get("text"))):
            whole = "image" in found and texts is not None
            rows.append((name, towers, compared(pairs, row, (found["image"], texts)) if whole else None))
    return rows, files


def inputs_of(artifact: Any, data: Any, texts: list[str]) -> dict[str, NDArray[Any]]:
    """What the graphs are fed for the test pairs: normalized pixels, and the tokens of the candidates."""
    from mmcompress.data.batches import batches
    from mmcompress.data.preprocess import normalize
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
