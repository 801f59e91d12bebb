"""Predicted against measured latency of a split tower: two processes on this machine, and lines of three bandwidths.

    python benchmarks/split.py [--size vit-s16|demo] [--bandwidths 5Mbps,20Mbps,100Mbps] [--threads 1] [--tries 3]

The tower of a ViT-S/16 at 224 pixels with random weights, or the demo's teacher, in FP32 on ONNX Runtime, cut behind
its middle block: with two equal devices no cut is best, so none is chosen. The halves are measured alone, and a message
of some bytes between two processes, and the prediction is made of that; then both halves run together, the bandwidths
in turn, in the real-time class where the system permits it. Prints a table in Markdown, the median of the tries.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

import onnx

from mmcompress.architecture import DualEncoderConfig
from mmcompress.artifact import Artifact
from mmcompress.formats import count, milliseconds
from mmcompress.huggingface import save_checkpoint
from mmcompress.manifest import Kind, Preprocessing, TextProcessing
from mmcompress.measure.split import plan
from mmcompress.measure.split.halves import halves, sent_bytes, stream_of
from mmcompress.measure.split.loopback import measured_ms, request_ms
from mmcompress.measure.split.times import measured_times, written
from mmcompress.model import DualEncoder, initialize
from mmcompress.packaged import packaged
from mmcompress.pipeline import standalone
from mmcompress.runtime.backends import graph_for

IMAGE = {"width": 384, "head_dim": 64, "heads": (6,) * 12, "mlp": (1536,) * 12, "image_size": 224, "patch": 16}
TEXT = {"width": 64, "head_dim": 64, "heads": (1,), "mlp": (64,), "vocab": 6000, "context": 32, "eos_token_id": 1}


def checkpoint(folder: Path) -> Path:
    """A ViT-S/16 of random weights, with the demo's tokenizer; nobody asks it for an answer."""
    model = DualEncoderConfig.model_validate({"embed_dim": 384, "image": IMAGE, "text": TEXT})
    with Artifact.create(folder, kind=Kind.CHECKPOINT, stage="train", key="random") as draft:
        save_checkpoint(initialize(DualEncoder(model), 0), draft.path)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (draft.path / name).write_bytes((Path(packaged("demo:teacher")) / name).read_bytes())
        draft.model = model
        draft.preprocessing = Preprocessing(size=224, resize=224, mean=(0.5,) * 3, std=(0.5,) * 3)
        draft.tokenizer = TextProcessing(context=32, pad_token_id=1, eos_token_id=1)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("vit-s16", "demo"), default="vit-s16")
    parser.add_argument("--bandwidths", default="5Mbps,20Mbps,100Mbps")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tries", type=int, default=3)
    asked = parser.parse_args()
    lines = {said: plan.bits_per_s(said) for said in asked.bandwidths.split(",")}
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        source = "demo:teacher" if asked.size == "demo" else checkpoint(work / "checkpoint")
        exported = standalone.export(source, work / "graphs", {"precisions": ("fp32",)})
        graph = graph_for(exported, "image", "onnxruntime", "fp32")
        model = onnx.load(str(exported.file(graph.file)))
        every = stream_of(model, graph.file)
        behind = sorted(every)[len(every) // 2]
        tensor, tokens, width = every[behind]
        first, second = (
            written(half, work / f"{name}.onnx", graph, "onnxruntime", asked.threads)
            for name, half in zip(("a", "b"), halves(model, tensor, "fp16"), strict=True)
        )
        side, answer = int(graph.inputs[0].shape[-1] or 0), int(graph.outputs[0].shape[-1] or 0)
        payload = plan.Payload(3 * side * side, {behind: sent_bytes(tokens, width, "fp16")}, 4 * answer)
        tries = []
        for _ in range(asked.tries):  # what is predicted and what is measured in turn, as the machine's speed drifts
            times = measured_times(model, {behind: every[behind]}, "", graph, "onnxruntime", asked.threads, work)
            constant = request_ms()
            one = {}
            for said, bits in lines.items():
                line = plan.Line(bits, 0.0, constant)
                way = next(way for way in plan.options(times, times, payload, line, "fp16") if way.behind == behind)
                one[said] = (way, measured_ms(first, second, line))
            tries.append(one)
        print("| line | blocks on a, of all | bytes | a | line | b | predicted | measured | off by |")
        print("|--:|--:|--:|--:|--:|--:|--:|--:|--:|")
        for said in lines:
            runs = [one[said] for one in tries]
            columns = [(way.first_ms, way.link_ms, way.second_ms, way.total_ms, ms) for way, ms in runs]
            middle = map(milliseconds, map(statistics.median, zip(*columns, strict=True)))
            off = statistics.median(ms / way.total_ms - 1 for way, ms in runs)
            sent = count(runs[0][0].sent_bytes)
            print(f"| {said} | {behind} of {len(every) + 1} | {sent} | {' | '.join(middle)} | {off:+.1%} |")


if __name__ == "__main__":
    main()
