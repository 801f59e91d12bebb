"""Teachers of one's own: what they may do, what their answers are held to, and what their cache depends on."""

from __future__ import annotations

import re
import sys
import tempfile
import warnings
from collections.abc import Generator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models

from mmcompress.compress import recording
from mmcompress.compress.teacher import load_teacher
from mmcompress.config import TeacherConfig
from mmcompress.errors import CorruptInputError, MMCompressError, UsageError
from mmcompress.foreign import foreign_code

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
        (build("lambda x: image(x).to('meta')"), "returned a tensor on the device meta"),
        (build("lambda x: image(x).to_sparse()"), "returned a tensor of the layout torch.sparse_coo"),
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
        ("import asyncio\ndef build(): raise asyncio.CancelledError\n", r"mine\.py, line 11: CancelledError"),
        ("def build(): raise GeneratorExit\n", r"mine\.py, line 10: GeneratorExit"),
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


def test_what_is_no_function_is_not_suggested(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has no function 'build'") as caught:
        load(tmp_path, "build, bild = 3, 4\ndef built(): pass\n")
    assert caught.value.hint == "did you mean 'built'?"


def test_norms_as_coarse_as_bfloat16_are_no_second_answer(tmp_path: Path) -> None:
    code = "def coarse(x): return (image(x) * torch.linspace(0.993, 1.007, len(x))[:, None]).bfloat16()\n"
    teacher = load(tmp_path, code + build("coarse"))
    norms = teacher.encode_image(torch.randn(64, 3, 8, 8)).norm(dim=-1)  # type: ignore[attr-defined]
    assert norms.max() > 1.005, "the case is about norms that are not 1"


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


READS = {
    "torch.from_file": 'torch.from_file("w.f32", size=8)',
    "copied": 'torch.from_file("w.f32", size=8).clone()',
    "imported": "from_file(filename='w.f32', size=8)",
    "storage": 'torch.UntypedStorage.from_file("w.f32", False, 32)',
    "typed storage": 'torch.FloatStorage.from_file("w.f32", False, 8)',
    "memmap": 'np.memmap("w.f32", np.float32)',
    "fromfile": 'np.fromfile("w.f32", np.float32)',
    "mmap": 'mmap.mmap(os.open("w.f32", os.O_RDONLY), 0, prot=mmap.PROT_READ)',
    "load": 'torch.load("w.pt", mmap=True)',
    "jit": 'torch.jit.load("w.ts")',
    "exported": 'torch._C.PyTorchFileReader("w.pt")',
    "tokenizer": 'Tokenizer.from_file("w.json")',
    "onnxruntime": 'onnxruntime.InferenceSession("w.onnx", providers=["CPUExecutionProvider"])',
    "openvino": 'openvino.Core().read_model("w.onnx")',
    "sqlite": 'sqlite3.connect("w.db").execute("select 1")',
    "executed": 'exec(Path("w.py").read_text())',
    "appended": '(lambda file: (file.read(), file.close()))(open("w.f32", "a+b"))',
    "below a folder": 'os.open("w.f32", os.O_RDONLY, dir_fd=os.open(PLACE, os.O_RDONLY))',
}


@pytest.mark.filterwarnings("ignore:TypedStorage", "ignore:`torch.jit")
@pytest.mark.parametrize("how", READS)
def test_what_native_code_reads_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """Whoever opens the file: a change of it is a change of the teacher."""
    place = tmp_path / "elsewhere"
    place.mkdir()
    monkeypatch.chdir(place)
    (name,) = re.findall(r"w\.\w+", READS[how])
    write_readable(place / name)
    (tmp_path / "own").mkdir()
    if "PLACE" in READS[how]:
        monkeypatch.chdir(tmp_path)
    code = f"""import mmap, os, sqlite3
import numpy as np
import onnxruntime, openvino
from pathlib import Path
from tokenizers import Tokenizer
from torch import from_file
PLACE = {str(place)!r}
def build():
    global KEPT
    KEPT = {READS[how]}
    return Teacher(image, text, RULE, 16)
"""
    before = torch.from_file, torch.jit.load, onnxruntime.InferenceSession.__init__
    teacher = load(tmp_path / "own", code)
    assert place / name in teacher.files  # type: ignore[attr-defined]
    assert before == (torch.from_file, torch.jit.load, onnxruntime.InferenceSession.__init__)
    assert "from_file" not in vars(torch.UntypedStorage)


def test_what_the_recorder_imports_keeps_its_own_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime maps the database of its telemetry as it is imported, if it is let, and it always changes."""
    (tmp_path / "database").write_bytes(b"1")
    (tmp_path / "later.db-shm").write_bytes(b"1")
    (tmp_path / "weights").write_bytes(b"1")
    (tmp_path / "own").mkdir()
    package = """import os, mmap
OPENED = os.open(PLACE + "/database", os.O_RDWR | os.O_APPEND)
MAPPED = mmap.mmap(OPENED, 0)
def read(path): pass
"""
    (tmp_path / "a_runtime.py").write_text(f"PLACE = {str(tmp_path)!r}\n" + package)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(recording, "_NATIVE", ("a_runtime.read",))
    code = f"""import mmap, os
def mapped(name): return mmap.mmap(os.open({str(tmp_path)!r} + "/" + name, os.O_RDWR | os.O_APPEND), 0)
def build():
    global KEPT
    KEPT = mapped("later.db-shm"), mapped("weights")
    return Teacher(image, text, RULE, 16)
"""
    files = load(tmp_path / "own", code).files  # type: ignore[attr-defined]
    assert tmp_path / "weights" in files  # heard as mapped only: it is opened as output would be
    assert not {tmp_path / "database", tmp_path / "later.db-shm"} & set(files)


def test_two_teachers_that_share_a_module_both_read_what_it_reads(tmp_path: Path) -> None:
    """Whether it is a file or a package without one of its own, and though it lies in neither's folder."""
    (tmp_path / "shared" / "parts").mkdir(parents=True)
    (tmp_path / "shared" / "w").write_text("1")
    source = "from pathlib import Path\nW = Path(__file__).parents[NUMBER].joinpath('w').read_text()\n"
    (tmp_path / "shared" / "a_backbone.py").write_text(source.replace("NUMBER", "0"))
    (tmp_path / "shared" / "parts" / "deep.py").write_text(source.replace("NUMBER", "1"))
    for module in ("import a_backbone", "from parts import deep"):
        for name in ("a", "b"):
            folder = tmp_path / module.split()[1] / name
            folder.mkdir(parents=True)
            teacher = load(folder, f"import sys\nsys.path.insert(1, '{tmp_path}/shared')\n{module}\n" + build())
            sys.path.remove(f"{tmp_path}/shared")
            assert tmp_path / "shared" / "w" in teacher.files  # type: ignore[attr-defined]
    assert not {"a_backbone", "parts", "parts.deep"} & sys.modules.keys()


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="the system has no files in shared memory")
def test_weights_in_shared_memory_count(tmp_path: Path) -> None:
    with tempfile.NamedTemporaryFile(dir="/dev/shm") as file:
        file.write(b"1")
        file.flush()
        code = "from multiprocessing import shared_memory\ndef build():\n    global KEPT\n"
        code += f"    open({file.name!r}).close()\n    KEPT = shared_memory.SharedMemory(create=True, size=8)\n"
        teacher = load(tmp_path, code + "    return Teacher(image, text, RULE, 16)\n")
        assert set(teacher.files) == {tmp_path / "mine.py", Path(file.name)}  # type: ignore[attr-defined]
        with pytest.raises(UsageError, match="shared"):
            load(tmp_path, code + "    KEPT.unlink()\n    raise ValueError('shared')\n")


def test_the_working_directory_is_ours_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what the teacher declares is found from the one that it chose."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "said").touch()
    code = "import os\ndef build():\n    os.chdir(os.path.dirname(__file__))\n"
    code += "    return Teacher(lambda x: (os.chdir('/'), image(x))[1], text, RULE, 16, files=('said',))\n"
    teacher = load(tmp_path / "own", code)
    assert Path.cwd() == tmp_path
    assert tmp_path / "own" / "said" in teacher.files  # type: ignore[attr-defined]


def test_an_interrupt_stays_one(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        load(tmp_path, "def build(): raise KeyboardInterrupt\n")


def test_the_end_of_a_generator_of_ours_is_no_failure() -> None:
    names = {"foreign_code": foreign_code}
    exec("def answers():\n    with foreign_code('this', 'that'): yield 1", names)
    ended: Generator[int, None, None] = names["answers"]()  # type: ignore[assignment, call-arg, arg-type]
    next(ended)
    ended.close()


def write_readable(file: Path) -> None:
    """Something that the suffix's own reader takes."""
    if file.suffix == ".pt":
        torch.save({"w": torch.ones(8)}, file)
    elif file.suffix == ".ts":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)), file)
    elif file.suffix == ".json":
        Tokenizer(models.WordLevel({"a": 0}, unk_token="a")).save(str(file))
    elif file.suffix == ".onnx":
        value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
        out = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
        graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "g", [value], [out])
        onnx.save(onnx.helper.make_model(graph, ir_version=10, opset_imports=[onnx.helper.make_opsetid("", 18)]), file)
    elif file.suffix == ".py":
        file.write_text("W = 1")
    elif file.suffix == ".f32":
        np.ones(8, np.float32).tofile(file)
    else:
        file.touch()


STARTS = {
    "subprocess": "subprocess.run(['cat', 'w'], capture_output=True)",
    "system": "os.system('true')",
    "pool": "multiprocessing.get_context('fork').Process(target=print).start()",
    "spawned": "multiprocessing.get_context('spawn').Process(target=print).start()",
    "server": "multiprocessing.get_context('forkserver').Process(target=print).start()",
    "spawn": "os.posix_spawnp('true', ['true'], {})",
}


@pytest.mark.parametrize("how", STARTS)
def test_a_teacher_that_starts_a_program_has_to_name_its_files(tmp_path: Path, how: str) -> None:
    code = f"""import multiprocessing, os, subprocess
from pathlib import Path
def words(t):
    {STARTS[how]}
    return text(t)
def build(*files): return Teacher(image, words, RULE, 16, files=files)
def named(): return build(Path(__file__).parent / "deep" / "w")
"""
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "w").touch()
    with pytest.raises(UsageError, match=r"starts another program in .*mine\.py, line 13") as caught:
        load(tmp_path, code)
    assert "files=(Path(" in caught.value.hint
    assert tmp_path / "deep" / "w" in load(tmp_path, code, "named").files  # type: ignore[attr-defined]


def test_a_program_that_a_library_starts_is_its_own_affair(tmp_path: Path) -> None:
    """ctypes asks ldconfig, platform asks uname, and neither is told by the teacher what to read."""
    package = tmp_path / "site-packages" / "some_library.py"
    package.parent.mkdir()
    package.write_text("import subprocess\ndef ask(): subprocess.run(['true'])\n")
    code = f"import sys\nsys.path.append({str(package.parent)!r})\nimport some_library\nsome_library.ask()\n"
    load(tmp_path, code + build())


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
