"""The fixture `make_artifact`: small ONNX artifacts in the layout of the exporter."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from toy_model import CONTEXT, EOS, PAD, SIDE, Model, image_onnx, make_model, text_onnx, write_tokenizer

from mmcompress.artifact import Artifact
from mmcompress.manifest import Graph, Kind, Preprocessing, TensorSpec, TextProcessing

MakeArtifact = Callable[..., Artifact]


@pytest.fixture
def make_artifact(tmp_path: Path) -> MakeArtifact:
    """(name, model, precisions, facts) -> an ONNX artifact in the layout of the exporter."""

    def make(
        name: str = "student",
        model: Model | None = None,
        precisions: tuple[str, ...] = ("fp32",),
        facts: dict[str, Any] | None = None,
        kind: Kind = Kind.ONNX,
        targets: tuple[str | None, ...] = (None,),
    ) -> Artifact:
        model = model or make_model()
        dim = model.second.shape[1]
        output = (TensorSpec(name="embedding", shape=(None, dim), dtype="float32"),)
        pixels = (TensorSpec(name="pixels", shape=(None, 3, SIDE, SIDE), dtype="float32"),)
        tokens = (TensorSpec(name="tokens", shape=(None, CONTEXT), dtype="int32"),)
        with Artifact.create(tmp_path / name, kind=kind, stage="export", key=name) as draft:
            for precision in precisions:
                for target in targets:
                    int8 = precision == "int8"
                    activations: Any = ("signed" if target else "unsigned") if int8 else "float"
                    file = f"image-{precision}{f'-{target}' if target else ''}.onnx"
                    (draft.path / file).write_bytes(image_onnx(model, quantized=int8).SerializeToString())
                    draft.graphs.append(
                        Graph(
                            file=file,
                            tower="image",
                            precision=precision,  # type: ignore[arg-type]
                            activations=activations,
                            target=target,
                            inputs=pixels,
                            outputs=output,
                        )
                    )
            (draft.path / "text-fp32.onnx").write_bytes(text_onnx(model).SerializeToString())
            for precision in precisions:
                draft.graphs.append(
                    Graph(
                        file="text-fp32.onnx",
                        tower="text",
                        precision=precision,  # type: ignore[arg-type]
                        activations="unsigned" if precision == "int8" else "float",
                        inputs=tokens,
                        outputs=output,
                    )
                )
            write_tokenizer(draft.path / "tokenizer.json")
            draft.preprocessing = Preprocessing(size=SIDE, resize=SIDE, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
            draft.tokenizer = TextProcessing(context=CONTEXT, pad_token_id=PAD, eos_token_id=EOS)
            draft.facts = {"logit_scale": 20.0, **(facts or {})}
        return Artifact.open(tmp_path / name)

    return make
