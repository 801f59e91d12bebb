"""The engines of a ViT-B/32 of the true size, built without a GPU, twice, and held against budgets: `make engines`.

python benchmarks/engines.py [--targets sm86,sm89,sm120] [--seconds 60] [--out DIR]

Both towers in INT8 with FP16 around them, random weights and made-up ranges, which change neither kernels nor sizes nor
time. Everything runs as a user runs it: `mmcompress export`, `build` twice in processes of their own, and `check` with
limits. The bars: the same digest twice, every Linear INT8 (else `build` fails), no more kernels than FP16 has in the
image tower, sizes, and with --seconds a time for all engines. Without TensorRT-RTX, which
has wheels for x86 only, the script says so and ends.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from safetensors.numpy import load_file, save_file

from mmcompress.architecture import DualEncoderConfig
from mmcompress.artifact import Artifact
from mmcompress.int8 import RANGES, linear_modules
from mmcompress.manifest import Kind, Preprocessing, TextProcessing

IMAGE = {"width": 768, "head_dim": 64, "heads": (12,) * 12, "mlp": (3072,) * 12, "image_size": 224, "patch": 32}
TEXT = {"width": 512, "head_dim": 64, "heads": (8,) * 12, "mlp": (2048,) * 12}
KERNELS = 117
"""Those of the image tower in FP16."""
MEGABYTES = 105
"""Of one engine; the image tower's has 100 MB, the text tower's 97, of which its table of tokens in FP16 is 51."""


def write_checkpoint(folder: Path) -> None:
    """A calibrated checkpoint with random weights; nobody asks it for an answer."""
    from mmcompress.compress.train.vocabulary import save_tokenizer, tokenizer_from_captions
    from mmcompress.data.checkpairs import check_captions
    from mmcompress.huggingface import save_checkpoint
    from mmcompress.model import DualEncoder, initialize

    with Artifact.create(folder, kind=Kind.CHECKPOINT, stage="quantize", key="true size") as draft:
        eos = save_tokenizer(tokenizer_from_captions(check_captions(), 400), draft.path, 77).eos_token_id
        text = {**TEXT, "vocab": 49408, "context": 77, "eos_token_id": eos}
        model = DualEncoderConfig.model_validate({"embed_dim": 512, "image": IMAGE, "text": text})
        with tempfile.TemporaryDirectory() as temporary:
            save_checkpoint(initialize(DualEncoder(model), 0), Path(temporary))
            save_file(load_file(Path(temporary) / "model.safetensors"), draft.path / "model.safetensors")
        ranges = {name: {"low": -4.0, "high": 4.0, "absmax": 4.0} for name in linear_modules(model)}
        (draft.path / RANGES).write_text(json.dumps(ranges))
        draft.model, draft.facts = model, {"kept": []}
        draft.preprocessing = Preprocessing(size=224, resize=224, mean=(0.48,) * 3, std=(0.27,) * 3)
        draft.tokenizer = TextProcessing(context=77, pad_token_id=eos, eos_token_id=eos)


def mmcompress(*arguments: str) -> float:
    """Run a command; the seconds that it took."""
    start = time.monotonic()
    subprocess.run([sys.executable, "-m", "mmcompress", *arguments], check=True)
    return time.monotonic() - start


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", default="sm86,sm89,sm120")
    parser.add_argument("--seconds", type=float, help="most that the first build may take")
    parser.add_argument("--out", type=Path, help="where junit.xml and summary.md go")
    asked = parser.parse_args()
    if importlib.util.find_spec("tensorrt_rtx") is None:
        print("skipped: TensorRT-RTX is not installed")
        return 0
    targets = [part for name in asked.targets.split(",") for part in ("--targets", name)]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_checkpoint(folder / "checkpoint")
        mmcompress("export", str(folder / "checkpoint"), "--precision", "int8", "--out", str(folder / "onnx"))
        first_place, second_place = (folder / side / "engines" for side in "ab")
        took = [
            mmcompress("build", str(folder / "onnx"), *targets, "--out", str(place))
            for place in (first_place, second_place)
        ]
        first, second = (Artifact.open(place) for place in (first_place, second_place))
        print(f"built in {took[0]:.0f} s and {took[1]:.0f} s, both towers for {asked.targets}")
        for file, audit in first.manifest.facts["audit"].items():
            size = first.manifest.files[file].bytes / 1e6
            print(f"{file}: {size:.1f} MB, {audit['layers']} kernels, Linears {audit['modules']}")
        limits = ["--max", f"kernels={KERNELS}", "--max", f"engine_bytes={MEGABYTES * 1e6:.0f}"]
        if asked.out is not None:
            asked.out.mkdir(parents=True, exist_ok=True)
            limits += ["--junit", str(asked.out / "junit.xml"), "--markdown", str(asked.out / "summary.md")]
        mmcompress("check", str(first_place), *limits)
        differing = [file for file, entry in first.manifest.files.items() if second.manifest.files.get(file) != entry]
        if differing or first.digest != second.digest:
            print(f"two builds differ: {', '.join(differing) or 'in their manifests'}")
            return 1
        print(f"the same bytes twice: {first.digest}")
    if asked.seconds is not None and took[0] > asked.seconds:
        print(f"the first build took {took[0]:.0f} s, and the limit is {asked.seconds:.0f} s")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
