"""Any teacher's towers as ONNX: the graphs and the tokenizer against the teacher's own functions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conv_teacher import CONTEXT, SIDE, WIDTH, teacher, tokenizer, towers
from tokenizers import normalizers
from torch import Tensor, nn

from mmcompress.artifact import Artifact
from mmcompress.compress import trace as stage
from mmcompress.compress.towers import tokenizer_like
from mmcompress.config import TeacherConfig, TraceConfig
from mmcompress.errors import GateFailedError, UsageError
from mmcompress.export.oddities import odd_texts
from mmcompress.manifest import TextProcessing
from mmcompress.pipeline.run import run_stage
from mmcompress.runtime.encoder import Encoder
from mmcompress.runtime.tokenize import tokenize
from mmcompress.stages import STAGES

SOURCE = Path(__file__).parents[1] / "worlds" / "conv_teacher.py"


def traced(out: Path, source: str = f"{SOURCE}:teacher") -> Artifact:
    return run_stage(STAGES["trace"], TraceConfig(teacher=TeacherConfig(source=source)), {}, (), out)


def test_a_users_own_modules_become_two_graphs_of_any_batch(tmp_path: Path) -> None:
    artifact = traced(tmp_path / "traced")
    image, text = artifact.manifest.graphs
    assert (image.inputs[0].shape, image.outputs[0].shape) == ((None, 3, SIDE, SIDE), (None, WIDTH))
    assert (text.inputs[0].shape, text.inputs[0].dtype) == ((None, CONTEXT), "int32")
    assert artifact.manifest.facts["logit_scale"] == 20.0 and artifact.manifest.facts["logit_bias"] == -3.0
    own = teacher()
    texts = ["w1 w2", "", "w3 " * 30]
    for backend in ("onnxruntime", "openvino"):
        with Encoder.open(artifact, backend) as encoder:  # type: ignore[arg-type]
            for batch in (1, 3, 8):
                pixels = np.random.default_rng(batch).standard_normal((batch, 3, SIDE, SIDE), dtype=np.float32)
                wanted = own.encode_image(torch.from_numpy(pixels)).numpy()
                assert np.abs(encoder.images(pixels) - wanted).max() < 1e-5
            assert np.abs(encoder.texts(texts) - own.encode_text(texts).numpy()).max() < 1e-5


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Take a teacher in the place of the one that is named."""

    def take(made: Any) -> None:
        monkeypatch.setattr(stage, "load_teacher", lambda *_: made)

    return take


def test_functions_that_are_not_what_the_modules_do_are_refused(tmp_path: Path, given: Any) -> None:
    own = teacher()
    given(replace(own, encode_text=lambda texts: own.encode_text([f"w5 {text}" for text in texts])))
    with pytest.raises(GateFailedError, match=r"text-fp32\.onnx differs from the teacher"):
        traced(tmp_path / "traced")
    given(replace(own, towers=None))
    with pytest.raises(UsageError, match="offers functions only"):
        traced(tmp_path / "traced")
    assert not (tmp_path / "traced").exists()


class Odd(nn.Module):
    """No operator of ONNX."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.eigvals(x[:, 0]).real[:, :WIDTH]


def test_modules_that_onnx_cannot_say_are_named(tmp_path: Path, given: Any) -> None:
    made = teacher()
    given(replace(made, towers=lambda: replace(towers(), image=Odd())))
    with pytest.raises(UsageError, match="export of the Odd failed"):
        traced(tmp_path / "traced")


OWN = """import conv_teacher
from dataclasses import replace
from torch import nn
class Broken(nn.Module):
    def forward(self, x): return {}["weights"]
class Late(nn.Module):
    def __init__(self):
        super().__init__()
        self.tower = conv_teacher.towers().image
    def forward(self, x):
        import neighbour
        return neighbour.same(self.tower(x))
def absent(): return replace(conv_teacher.teacher(), towers=lambda: nowhere)
def number(): return replace(conv_teacher.teacher(), towers=lambda: 3)
def nothing(): return replace(conv_teacher.teacher(), towers=3)
def scale(): return replace(conv_teacher.teacher(), towers=lambda: replace(conv_teacher.towers(), logit_scale="x"))
def broken(): return replace(conv_teacher.teacher(), towers=lambda: replace(conv_teacher.towers(), image=Broken()))
def late(): return replace(conv_teacher.teacher(), towers=lambda: replace(conv_teacher.towers(), image=Late()))
"""


@pytest.mark.parametrize(
    ("function", "what"),
    [
        ("absent", r"own code failed in .*own\.py, line 13: NameError"),
        ("number", "returned int"),
        ("nothing", "has 3 as its towers, expected a function or None"),
        ("scale", "has 'x' as its logit_scale"),
        ("broken", r"export of the Broken failed in .*own\.py, line 5: KeyError: 'weights'"),
    ],
)
def test_what_fails_in_a_users_towers_is_told_with_its_line(tmp_path: Path, function: str, what: str) -> None:
    (tmp_path / "own.py").write_text(OWN)
    with pytest.raises(UsageError, match=what):
        traced(tmp_path / "traced", f"{tmp_path / 'own.py'}:{function}")


def test_a_users_module_may_import_its_neighbours_when_it_is_traced(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN)
    (tmp_path / "neighbour.py").write_text("def same(x): return x\n")
    traced(tmp_path / "traced", f"{tmp_path / 'own.py'}:late")


def test_a_tokenizer_that_differs_on_odd_texts_is_refused() -> None:
    processing = TextProcessing(context=CONTEXT, pad_token_id=0, eos_token_id=2)
    one, other = tokenizer(), tokenizer()
    other.normalizer = normalizers.Replace("a", "w1")
    assert tokenizer_like(lambda texts: tokenize(one, texts, processing), tokenizer(), processing, "x") is not None
    with pytest.raises(UsageError, match=r"other ids than a tokenizer\.json can: for 'a"):
        tokenizer_like(lambda texts: tokenize(other, texts, processing), tokenizer(), processing, "x")
    with pytest.raises(UsageError, match="gives 3 ids a text"):
        tokenizer_like(lambda texts: np.zeros((len(odd_texts()), 3)), tokenizer(), processing, "x")
