"""TensorRT-RTX builds graphs with preprocessing and labels inside and tables in 8 bits; no GPU is needed, none runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from test_build import TOKENS, built, graph_file, signed
from tiny_clip import clip_of, config_of, tensors_of

from mmcompress.errors import UsageError
from mmcompress.export.export import save_graph, specs
from mmcompress.export.form import Form
from mmcompress.export.graph import Numerics
from mmcompress.export.promptbank import Bank
from mmcompress.export.towers import image_graph, text_graph
from mmcompress.int8 import linear_modules
from mmcompress.manifest import Preprocessing, PromptBank

RULE = Preprocessing(size=32, resize=32, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
BANK = Bank(PromptBank(labels=("cat", "dog")), np.eye(2, 24, dtype=np.float32))


def test_an_image_graph_of_one_size_with_labels_builds(tmp_path: Path) -> None:
    config = config_of()
    model = image_graph(config, tensors_of(clip_of(config)), signed(), 18)
    Form(RULE, (48, 64), BANK, 100.0).put_around(model)
    save_graph(model, tmp_path / "graph.onnx")
    audit = built(tmp_path / "graph.onnx", specs(model.graph.input)).audit
    linears = {name for name in linear_modules(config) if name.startswith("image.")}
    assert {name for name, kind in audit.modules.items() if kind == "int8"} >= linears


def test_images_of_any_size_have_no_profile(tmp_path: Path) -> None:
    config = config_of()
    model = image_graph(config, tensors_of(clip_of(config)), signed(), 18)
    Form(RULE).put_around(model)
    save_graph(model, tmp_path / "graph.onnx")
    with pytest.raises(UsageError):
        built(tmp_path / "graph.onnx", specs(model.graph.input))


def test_a_plan_holds_the_table_in_8_bits(tmp_path: Path) -> None:
    sizes = {}
    for table in (False, True):
        folder = tmp_path / str(table)
        folder.mkdir()
        path = graph_file(folder, text_graph, Numerics(np.float16, table=table), text_vocab=20_000)
        sizes[table] = len(built(path, TOKENS).plan)
    table_bytes = 20_000 * 32
    assert sizes[False] - sizes[True] > 0.6 * table_bytes, "half of what it is in FP16, less the scales"
