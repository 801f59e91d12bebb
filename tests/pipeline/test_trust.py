"""What somebody else's artifact records is a path or nothing: no command, no address, no leave to run code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from clip_world import write_squares, write_teacher

from mmcompress.artifact import Artifact
from mmcompress.errors import MMCompressError, UsageError
from mmcompress.int8 import INTEGERS, RANGES
from mmcompress.manifest import Kind
from mmcompress.pipeline import standalone
from mmcompress.pipeline.sources import data_unless_given, recorded_teacher


def received(path: Path, kind: Kind = Kind.CHECKPOINT, **config: Any) -> Path:
    with Artifact.create(path, kind=kind, stage="distill", key="k", config=config) as draft:
        for name in ("a.bin", RANGES, INTEGERS):
            (draft.path / name).write_bytes(b"1")
    return path


@pytest.mark.parametrize("field", ["train", "validation", "test", "labels", "templates"])
@pytest.mark.parametrize("spec", ["pipe:touch {0}", "-", "cached:https://a.org/a.tar", "{{pipe:touch {0}; echo }}://"])
@pytest.mark.parametrize("command", ["quantize", "qat", "verdict", "prune", "distill"])
def test_a_recorded_stream_is_not_opened(tmp_path: Path, command: str, spec: str, field: str) -> None:
    mark = tmp_path / "PWNED"
    config = {"data": {"train": "demo:train", field: spec.format(mark)}, "teacher": {"source": "demo:teacher"}}
    checkpoint = received(tmp_path / "checkpoint", **config)
    out = tmp_path / "out"
    with pytest.raises(UsageError, match="nothing that an artifact records is run or fetched") as caught:
        if command in ("quantize", "qat", "verdict"):
            getattr(standalone, command)(checkpoint, out)
        else:
            embeddings = received(tmp_path / "embeddings", Kind.EMBEDDINGS, **config)
            if command == "prune":
                standalone.prune(checkpoint, out, embeddings=embeddings)
            else:
                standalone.distill(out, {"student.source": "vit-t8-64"}, embeddings=embeddings)
    assert "--data" in caught.value.hint
    assert not mark.exists() and not out.exists()


def test_a_recorded_stream_is_no_matter_where_the_user_names_data(tmp_path: Path) -> None:
    checkpoint = Artifact.open(received(tmp_path / "a", data={"train": "pipe:x"}))
    assert data_unless_given({"data.train": "demo:val"}, checkpoint) == {}


def test_leave_to_run_code_is_not_inherited(tmp_path: Path) -> None:
    teacher = {"source": "someone/model", "trust_remote_code": True}
    assert recorded_teacher(Artifact.open(received(tmp_path / "a", teacher=teacher))) == {"source": "someone/model"}


CONFIG = """from transformers import CLIPConfig
class C(CLIPConfig):
    model_type = "{family}"
    def __init__(self, **keys):
        super().__init__(**keys)
"""
MODEL = """import sys
from transformers import CLIPModel
from .conf import C
class M(CLIPModel):
    config_class = C
    def __init__(self, config):
        super().__init__(config)
    def get_image_features(self, pixel_values):
        return super().get_image_features(pixel_values=pixel_values)
    def get_text_features(self, input_ids, attention_mask=None):
        return super().get_text_features(input_ids=input_ids, attention_mask=attention_mask)
    def forward(self, input_ids=None, pixel_values=None, attention_mask=None, **keys):
        return super().forward(input_ids, pixel_values, attention_mask, **keys)
"""
PROCESSOR = """from transformers import CLIPImageProcessor
class P(CLIPImageProcessor):
    def preprocess(self, *args, **keys):
        return super().preprocess(*args, **keys)
"""
TOKENIZER = """from transformers import PreTrainedTokenizerFast
class T(PreTrainedTokenizerFast):
    def __call__(self, *args, **keys):
        return super().__call__(*args, **keys)
"""
FAULTS = {
    "config": ("conf.py", "super().__init__(**keys)", "raise KeyError('no such key')"),
    "model": ("mod.py", "super().__init__(config)", "raise ZeroDivisionError('none')"),
    "import": ("mod.py", "import sys", "import a_package_that_is_nowhere"),
    "images": ("mod.py", "return super().get_image_features", "return None.get_image_features"),
    "texts": ("mod.py", "return super().get_text_features", "assert False; super().get_text_features"),
    "exit": ("mod.py", "return super().get_text_features", "sys.exit(0); super().get_text_features"),
    "processor": ("proc.py", "return super().preprocess", "return [].preprocess"),
    "tokenizer": ("tok.py", "return super().__call__", "return {}['a'].__call__"),
    "forward": ("mod.py", "return super().forward", "raise IndexError('out of range')  #"),
}


def with_own_code(folder: Path, family: str, fault: str) -> tuple[Path, str]:
    """A trusted model with a fault in one line, and that line's place."""
    write_teacher(folder)
    files = {"conf.py": CONFIG.format(family=family), "mod.py": MODEL, "proc.py": PROCESSOR, "tok.py": TOKENIZER}
    name, right, wrong = FAULTS[fault]
    assert right in files[name]
    files[name] = files[name].replace(right, wrong, 1)
    for file, code in files.items():
        (folder / file).write_text(code)
    maps = {
        "config.json": {"AutoConfig": "conf.C", "AutoModel": "mod.M"},
        "preprocessor_config.json": {"AutoImageProcessor": "proc.P"},
        "tokenizer_config.json": {"AutoTokenizer": [None, "tok.T"]},
    }
    for file, auto in maps.items():
        stated = json.loads((folder / file).read_text())
        own = {"model_type": family} if file == "config.json" else {}
        (folder / file).write_text(json.dumps({**stated, **own, "auto_map": auto}))
    line = next(index for index, code in enumerate(files[name].splitlines(), 1) if wrong.partition(";")[0] in code)
    return folder, f"{name}, line {line}"


@pytest.mark.parametrize("command", ["embed", "export", "quantize"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_a_models_own_code_is_an_error_that_names_the_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str, command: str
) -> None:
    """Whichever command runs it first; a model of a known family becomes a checkpoint, any other one graphs."""
    if fault == "forward" and command != "export":
        pytest.skip("these ask the two functions that embed")
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    data, out, own = str(write_squares(tmp_path)), tmp_path / "out", f"own_{command}_{fault}"
    for family in ("clip",) if fault == "forward" else ("clip", own):
        folder, place = with_own_code(tmp_path / family / own, family, fault)
        given = {"teacher.trust_remote_code": True, "data.train": data, "samples": 32}
        with pytest.raises(MMCompressError) as caught:
            if command == "embed":
                del given["samples"]
                standalone.embed(out, {**given, "teacher.source": str(folder)})
            elif command == "export":
                standalone.export(str(folder), out, {"teacher.trust_remote_code": True})
            else:
                standalone.quantize(folder, out, given)
        assert caught.value.hint and not out.exists()
        assert fault == "import" or place in caught.value.what
