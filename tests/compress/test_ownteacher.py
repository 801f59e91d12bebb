"""Teachers of one's own: what they may do, what their answers are held to, and what their cache depends on."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from mmcompress.compress.teacher import load_teacher
from mmcompress.config import TeacherConfig
from mmcompress.errors import CorruptInputError, MMCompressError, UsageError

CPU = torch.device("cpu")
HEAD = """import torch
from torch.nn.functional import normalize
from mmcompress.artifact import Preprocessing
from mmcompress.compress.teacher import Teacher
RULE = Preprocessing(size=8, resize=8, mean=(.5,) * 3, std=(.5,) * 3)
A = torch.randn(192, 16, generator=torch.Generator().manual_seed(0))
def image(x): return normalize(x.flatten(1) @ A, dim=-1)
def seeded(s): return torch.Generator().manual_seed(sum((i + 1) * ord(c) for i, c in enumerate(s)))
def text(t): return normalize(torch.stack([torch.randn(16, generator=seeded(s)) for s in t]))
"""


def load(folder: Path, code: str, function: str = "build") -> object:
    file = folder / "mine.py"
    file.write_text(HEAD + code)
    return load_teacher(TeacherConfig(source=f"{file}:{function}"), CPU)


def build(image: str = "image", text: str = "text", width: int = 16) -> str:
    return f"def build(): return Teacher({image}, {text}, RULE, {width})\n"


def test_answers_are_float32_on_the_cpu_without_a_gradient(tmp_path: Path) -> None:
    code = build("lambda x: (image(x) * torch.ones(1, requires_grad=True)).double()")
    teacher = load(tmp_path, code)
    assert isinstance(teacher.encode_image(torch.randn(2, 3, 8, 8)), torch.Tensor)  # type: ignore[attr-defined]
    found = teacher.encode_image(torch.randn(2, 3, 8, 8))  # type: ignore[attr-defined]
    assert found.dtype == torch.float32 and not found.requires_grad


@pytest.mark.parametrize(
    ("code", "what"),
    [
        (build("lambda x: 300 * image(x)"), r"rows of norm 300 to 300, expected 1"),
        (build("lambda x: x.flatten(1) @ A"), r"encode_image returned rows of norm"),
        (build("lambda x: image(x) * float('nan')"), "embeds an image as NaN"),
        (build(text="lambda t: torch.zeros(len(t), 16)"), "embeds a text as NaN, infinity or zeros only"),
        (build("lambda x: normalize(torch.ones(len(x), 16))"), "same answer to 16 different images"),
        (build(text="lambda t: normalize(torch.ones(len(t), 16))"), "same answer to 32 different texts"),
        (
            build(text="lambda t: normalize(text(t)[:, :8])"),
            r"encode_text returned the shape \(32, 8\), expected \(32, 16\)",
        ),
        (build(width=12), r"encode_image returned the shape \(16, 16\), expected \(16, 12\)"),
        (build("lambda x: image(x)[:, None].expand(-1, 5, -1)"), r"returned the shape \(16, 5, 16\)"),
        (build("lambda x: image(x)[:1]"), r"returned the shape \(1, 16\)"),
        (build("lambda x: image(x).numpy()"), "encode_image returned a ndarray"),
        (build("lambda x: (image(x) * 9).int()"), "returned a tensor of torch.int32"),
        (build("lambda x: normalize(image(x) + 0.1 * torch.randn(len(x), 16))"), "gave one input two answers"),
        (build("lambda x: normalize(image(x) - image(x).mean(0))"), "gave one input two answers"),
        ("def build(): return Teacher(image, text, 224, 16)\n", "has 224 as its preprocessing, expected a mmcompress"),
        ("def build(): return Teacher(None, text, RULE, 16)\n", "has None as its encode_image, expected a function"),
        (
            "def build(): return Teacher(image, text, RULE, '16')\n",
            "has '16' as its embed_dim, expected a whole number",
        ),
        ("def build(): return Teacher(image, text, RULE, 16, logit_scale='x')\n", "has 'x' as its logit_scale"),
        ("def build(): return Teacher(image, text, RULE, 16, logit_bias=float('nan'))\n", "has nan as its logit_bias"),
        ("def build(): return Teacher(image, text, RULE, 16, files=3)\n", "has 3 as its files, expected a tuple"),
        ("def build(): return Teacher(image, text, RULE, 16, files=('no.pt',))\n", "read from no.pt, which is no file"),
        ("def build(): raise SystemExit(0)\n", r"own code failed in .*mine\.py, line 10: SystemExit: 0"),
        ("raise SystemExit\ndef build(): pass\n", r"own code failed in .*mine\.py, line 10: SystemExit"),
        ("import sys\n" + build("lambda x: sys.exit(0)"), r"own code failed in .*mine\.py, line 11: SystemExit: 0"),
        ("import sys\nsys.path.pop(0)\ndef build(): return 3\n", "returned int"),
        ("def build(): return 3\n", "returned int"),
        ("build = 3\n", "has no function 'build'"),
        ("def bild(): return 3\n", "has no function 'build'"),
        ("def build(:\n", "is no Python"),
        ("import a_package_that_is_nowhere\ndef build(): pass\n", r"mine\.py, line 10: ModuleNotFoundError"),
        (build("lambda x: image(x[:, :2])"), r"own code failed in .*mine\.py, line 7: RuntimeError"),
    ],
)
def test_what_is_no_teacher_is_refused(tmp_path: Path, code: str, what: str) -> None:
    with pytest.raises(MMCompressError, match=what):
        load(tmp_path, code)


def test_an_absent_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no Python file"):
        load_teacher(TeacherConfig(source=f"{tmp_path}/none.py:build"), CPU)


def test_a_batch_that_goes_wrong_later_is_refused(tmp_path: Path) -> None:
    code = "def late(x): return image(x) if len(x) > 4 else 2 * image(x)\n" + build("late")
    teacher = load(tmp_path, code)
    with pytest.raises(UsageError, match="rows of norm 2 to 2"):
        teacher.encode_image(torch.randn(2, 3, 8, 8))  # type: ignore[attr-defined]


def test_neighbours_are_imported_and_leave_nothing_behind(tmp_path: Path) -> None:
    """Two teachers have a neighbour of the same name, and each gets its own, also inside its functions."""
    teachers = []
    for number in (1, 2):
        folder = tmp_path / str(number)
        (folder / "parts").mkdir(parents=True)
        (folder / "neighbour.py").write_text(f"SIGN = {3 - 2 * number}\n")
        (folder / "parts" / "__init__.py").write_text("from neighbour import SIGN\n")
        teachers.append(
            load(folder, "def signed(x):\n    import parts\n    return parts.SIGN * image(x)\n" + build("signed"))
        )
    path, pixels = list(sys.path), torch.randn(9, 3, 8, 8)
    first, second = (teacher.encode_image(pixels) for teacher in teachers)  # type: ignore[attr-defined]
    torch.testing.assert_close(first, -second)
    assert sys.path == path and not {"neighbour", "parts", "mine"} & sys.modules.keys()


def test_what_it_read_is_known(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "other").mkdir()
    torch.save({"w": torch.ones(1)}, tmp_path / "deep" / "a.weights")
    save_file({"w": torch.ones(1)}, tmp_path / "deep" / "b.tensors")
    np.save(tmp_path / "deep" / "late.arr.npy", np.ones(1))
    (tmp_path / "native.onnx").write_bytes(b"1")
    (tmp_path / "log.txt").write_text("not read")
    (tmp_path / "other" / "said").write_text("declared")
    (tmp_path / "near.py").write_text("")
    code = f"""import near
from pathlib import Path
from safetensors.torch import load_file
import numpy as np
HERE = Path(__file__).parent
def late(t):
    np.load(HERE / "deep" / "late.arr.npy")
    return text(t)
def build():
    torch.load(HERE / "deep" / "a.weights"), load_file(HERE / "deep" / "b.tensors")
    (HERE / "written.txt").write_text("x")
    return Teacher(image, late, RULE, 16, files=(Path({str(tmp_path / "other" / "said")!r}),))
"""
    teacher = load(tmp_path, code)
    found = {path.relative_to(tmp_path).as_posix() for path in teacher.files}  # type: ignore[attr-defined]
    expected = {
        "mine.py",
        "near.py",
        "native.onnx",
        "deep/a.weights",
        "deep/b.tensors",
        "deep/late.arr.npy",
        "other/said",
    }
    assert found == expected


def test_the_guides_example_works(tmp_path: Path) -> None:
    guide = (Path(__file__).parents[2] / "docs" / "teachers.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", guide, re.DOTALL)
    (tmp_path / "colours.py").write_text(code)
    teacher = load_teacher(TeacherConfig(source=f"{tmp_path / 'colours.py'}:colours"), CPU)
    red = torch.full((1, 3, 64, 64), -1.0)
    red[:, 0] = 1
    scores = teacher.encode_image(red) @ teacher.encode_text(["something blue", "a red thing"]).T
    assert int(scores.argmax()) == 1


def test_random_weights_are_told_as_such(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    load(tmp_path, build())
    said = " ".join(capsys.readouterr().err.split())
    assert "is no better than chance" in said and "its weights are random or damaged" in said
    load_teacher(TeacherConfig(source="demo:teacher"), CPU)
    assert capsys.readouterr().err == ""


def test_weights_with_nan_are_refused(tmp_path: Path) -> None:
    from clip_world import write_teacher
    from safetensors.torch import load_file

    folder = write_teacher(tmp_path)
    tensors = load_file(folder / "model.safetensors")
    tensors["visual_projection.weight"][0, 0] = float("nan")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(CorruptInputError, match="embeds an image as NaN"):
        load_teacher(TeacherConfig(source=str(folder)), CPU)
