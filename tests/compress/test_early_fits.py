"""What depends on the model and the data that a command has is refused before a teacher is converted or embedded."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clip_world import write_squares, write_teacher
from conv_teacher import teacher as convolutions
from safetensors.numpy import load_file, save_file

from mmcompress.compress.ownteacher import check_has_towers
from mmcompress.compress.prune.sizes import check_latency_share
from mmcompress.errors import CorruptInputError, UsageError, suggestion
from mmcompress.families import config_from_hugging_face
from mmcompress.pipeline import standalone
from mmcompress.pipeline.shrinking import Wish, shrink

FEW = {"samples": 16, "batch": 8, "sensitivity": False, "smooth": []}
RANGED = {name: value for name, value in FEW.items() if name != "smooth"}


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_squares(tmp_path)
    write_teacher(tmp_path / "teacher")
    return tmp_path


def made(world: Path) -> list[str]:
    return sorted(path.name for path in world.iterdir() if path.name.startswith("out"))


@pytest.mark.parametrize("command", ["quantize", "verdict"])
def test_a_misspelt_linear_is_refused_before_a_teacher_is_converted(world: Path, command: str) -> None:
    keep = {"keep" if command == "quantize" else "quantize.keep": ["image.blocks.0.fc3"]}
    with pytest.raises(UsageError, match=r"there is no Linear 'image\.blocks\.0\.fc3' in this model") as caught:
        getattr(standalone, command)("teacher", Path("out"), {"data.train": "demo:train", **keep})
    assert "did you mean 'image.blocks.0.fc" in caught.value.hint and made(world) == []


@pytest.mark.parametrize("command", ["quantize", "verdict"])
def test_a_name_that_no_graph_can_have_is_refused_before_a_teacher_is_traced(world: Path, command: str) -> None:
    keep = {"keep" if command == "quantize" else "quantize.keep": ["visual.conv1.Conv"]}
    source = str(Path(convolutions.__code__.co_filename))
    with pytest.raises(UsageError, match=r"no graph has a product 'visual\.conv1\.Conv': a name begins with its tower"):
        getattr(standalone, command)(f"{source}:teacher", Path("out"), {"data.train": "demo:train", **keep})
    assert made(world) == []


def test_of_many_names_the_nearest_are_listed() -> None:
    names = [f"image.layer{block}.{index}.conv{index}.Conv" for block in range(9) for index in range(9)]
    said = suggestion("text.conv3", names)
    assert said.startswith("there are 81, the nearest are image.") and said.count("conv3") >= 3 and said.count(",") == 6
    assert suggestion("image.layer3.1.conv1.Conf", names) == "did you mean 'image.layer3.1.conv1.Conv'?"
    assert suggestion("zzz", names[:2]) == f"known: {names[0]}, {names[1]}"


def test_a_recipe_refuses_it_too(world: Path) -> None:
    Path("recipe.toml").write_text(
        '[data]\ntrain = "squares-00000.tar"\n[teacher]\nsource = "teacher"\n'
        '[[stage]]\nrun = "convert"\n[[stage]]\nrun = "quantize"\nkeep = ["image.blocks.9.fc1"]\n'
    )
    with pytest.raises(UsageError, match="there is no Linear"):
        standalone.run("recipe.toml", Path("out"))
    assert made(world) == []


def test_ranges_of_other_blocks_are_refused_before_a_teacher_is_converted(world: Path) -> None:
    fitted = standalone.quantize("teacher", Path("fitted"), {"data.train": "squares-00000.tar", **FEW})
    assert fitted.model.image.depth == 4
    shutil.copytree("teacher", "shallow")
    config = Path("shallow/config.json")
    config.write_text(config.read_text().replace('"num_hidden_layers": 4', '"num_hidden_layers": 3'))
    assert config_from_hugging_face(Path("shallow")).image.depth == 3
    with pytest.raises(UsageError, match=r"fitted has a range of \S+, which this model has not"):
        standalone.quantize("shallow", Path("out"), {"data.train": "squares-00000.tar"}, ranges=Path("fitted"))
    assert made(world) == []


def test_ranges_of_other_weights_are_refused_before_a_teacher_is_converted(world: Path) -> None:
    """Models of equal blocks and of equal gains, as random ones are, and one that SmoothQuant went through."""
    standalone.quantize("teacher", Path("plain"), {"data.train": "squares-00000.tar", **FEW})
    write_teacher(Path("another"), seed=1)
    with pytest.raises(UsageError, match=r"plain are of another model than another: \S+fc1\.weight is a different one"):
        standalone.quantize("another", Path("out"), {"data.train": "squares-00000.tar"}, ranges=Path("plain"))
    shutil.copytree("teacher", "smoothed")
    weights = load_file("smoothed/model.safetensors")
    factors = np.geomspace(0.1, 10, 64, dtype=np.float32)
    for name in [name for name in weights if name.endswith("layer_norm2.weight")]:
        weights[name] /= factors
        weights[name.replace("weight", "bias")] /= factors
        weights[name.replace("layer_norm2", "mlp.fc1")] *= factors
    save_file(weights, "smoothed/model.safetensors", {"format": "pt"})
    with pytest.raises(UsageError, match=r"plain are of other activations: \S+layer_norm2\.weight differs"):
        standalone.quantize("smoothed", Path("out"), {"data.train": "squares-00000.tar"}, ranges=Path("plain"))
    Path("smoothed/model.safetensors").write_bytes(b"nothing")
    with pytest.raises(CorruptInputError, match=r"model\.safetensors is damaged"):
        standalone.quantize("smoothed", Path("out"), {"data.train": "squares-00000.tar"}, ranges=Path("plain"))
    assert made(world) == []
    again = standalone.quantize(
        "teacher", Path("again"), {"data.train": "squares-00000.tar", **RANGED}, ranges=Path("plain")
    )
    assert "ranges" in again.manifest.parents


@pytest.mark.parametrize(
    ("command", "given"),
    [
        ("prune", {"batch": 61}),
        ("distill", {"optimizer.batch": 61, "student.source": "inherit:0.5"}),
        ("distill", {"student.source": "inherit:0.5", "data.train": "part:0-4/10:squares-00000.tar"}),
    ],
)
def test_a_batch_that_data_does_not_fill_is_refused_before_anything_is_embedded(
    world: Path, command: str, given: Mapping[str, Any]
) -> None:
    said = {"data.train": "squares-00000.tar", "teacher.source": "teacher", **given}
    with pytest.raises(UsageError, match=r"a batch of \d+ pairs was asked for, and there are \d+ in .*squares"):
        if command == "prune":
            standalone.prune("teacher", Path("out"), said)
        else:
            standalone.distill(Path("out"), said)
    assert made(world) == []


def test_a_share_that_no_size_has_is_refused_before_a_teacher_is_converted(world: Path) -> None:
    given = {"data.train": "demo:train", "target_macs": 0.001}
    with pytest.raises(UsageError, match=r"the macs of the image tower cannot be pruned to 0\.001x"):
        standalone.prune("teacher", Path("out"), given)
    assert made(world) == []


def test_a_latency_that_no_size_has_is_refused_before_anything_is_measured(world: Path) -> None:
    with pytest.raises(UsageError, match=r"the latency of the image tower cannot be pruned to 0\.001x") as caught:
        shrink("teacher", Path("out"), Wish("demo:train", target_latency="0.001x"))
    assert "or more" in caught.value.hint and made(world) == []
    model = config_from_hugging_face(Path("teacher"))
    check_latency_share(model, 0.5, 32)


def test_a_teacher_of_functions_alone_is_refused_before_it_is_run(world: Path) -> None:
    Path("own.py").write_text(
        "from mmcompress.compress.teacher import Teacher\nprint('it ran')\nraise SystemExit\n"
        "def build():\n    return Teacher(encode_image=id, encode_text=id, preprocessing=None, embed_dim=4)\n"
        "def other(*fields):\n    return Teacher(*fields)\n"
    )
    with pytest.raises(UsageError, match="offers functions only, and a graph is traced from torch modules"):
        shrink("own.py:build", Path("out"), Wish("demo:train"))
    assert made(world) == []
    check_has_towers(Path("own.py"), "other")
    check_has_towers(Path(convolutions.__code__.co_filename), "teacher")
