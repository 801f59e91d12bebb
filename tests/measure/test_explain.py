"""Maps of what a model looks at: against transformers' own attention, and on images of which it is known."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import rich.console
import torch
import transformers
from family_folders import pixels, stock_model
from PIL import Image
from torch.nn import functional as F

from mmcompress.cli.show_use import explained_summary
from mmcompress.data.batches import read
from mmcompress.errors import CorruptInputError, UsageError
from mmcompress.huggingface import dual_encoder_from_hugging_face
from mmcompress.manifest import Preprocessing
from mmcompress.measure.explain import pointing as game
from mmcompress.measure.explain.explain import Explanation
from mmcompress.measure.explain.heat import lit
from mmcompress.measure.explain.occlusion import CELLS, PASSES, occlusion
from mmcompress.measure.explain.picture import check_picture
from mmcompress.measure.explain.pointing import read_boxes, seen_boxes, touched_cells
from mmcompress.measure.explain.relevance import relevance

RULE = Preprocessing(size=64, resize=64, mean=(0.5,) * 3, std=(0.5,) * 3)
SIDE = 128


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_relevance_is_the_paper_s_on_transformers_own_attention(family: str, tmp_path: Path) -> None:
    """Chefer et al. 2021, equations 5 and 6, written out over all tokens of all blocks, and read at the end.

    The pooling query of SigLIP is no token of the stream: its map stands alone in front of what the blocks carried.
    """
    stock_model(family).save_pretrained(tmp_path)
    theirs = transformers.AutoModel.from_pretrained(tmp_path).eval()
    tower = dual_encoder_from_hugging_face(tmp_path).image
    images = pixels(theirs.config.vision_config.image_size)
    attentions: list[torch.Tensor] = []
    for layer in theirs.vision_model.encoder.layers:
        layer.self_attn.config._attn_implementation = "eager"
        layer.self_attn.register_forward_hook(lambda _, __, answer: attentions.append(answer[1]))
    seen = theirs.vision_model(images, output_attentions=True)
    embeddings, pooled = seen.pooler_output, None
    if family == "clip":
        embeddings = theirs.visual_projection(embeddings)
    else:
        head, x = theirs.vision_model.head, seen.last_hidden_state
        own, probe, heads = head.attention, head.probe.repeat(len(x), 1, 1), head.attention.num_heads
        given = zip((probe, x, x), own.in_proj_weight.chunk(3), own.in_proj_bias.chunk(3), strict=True)
        q, k, v = (F.linear(*each).unflatten(-1, (heads, -1)).transpose(1, 2) for each in given)
        pooled = (q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5).softmax(dim=-1)
        mixed = own.out_proj((pooled @ v).transpose(1, 2).flatten(2))
        assert torch.allclose((mixed + head.mlp(head.layernorm(mixed)))[:, 0], embeddings, atol=1e-4)
        embeddings = (mixed + head.mlp(head.layernorm(mixed)))[:, 0]
    texts = torch.randn(embeddings.shape, generator=torch.Generator().manual_seed(0))
    score = F.cosine_similarity(embeddings, texts)

    def for_answer(attention: torch.Tensor) -> torch.Tensor:
        (gradient,) = torch.autograd.grad(score.sum(), attention, retain_graph=True)
        return (gradient * attention).clamp(min=0).mean(dim=1)

    carried = torch.eye(seen.last_hidden_state.shape[1]).expand(len(images), -1, -1)
    assert len(attentions) == len(tower.blocks)
    for attention in attentions:
        carried = carried + for_answer(attention) @ carried
    expected = (carried[:, 0, 1:] if pooled is None else (for_answer(pooled) @ carried)[:, 0]).detach()
    cosines, maps = relevance(tower, images, texts)
    assert torch.allclose(cosines, score, atol=1e-4)
    assert torch.allclose(maps.flatten(1), expected, rtol=1e-3, atol=1e-3 * float(expected.max()))
    assert float(maps.max()) > 0


def test_occlusion_finds_the_part_that_an_answer_rests_on() -> None:
    """The model is a mean of one corner, so its loss is the share of that corner that is hidden."""
    text = np.array([1.0, 0.0], dtype=np.float32)

    def embed(shown: Any) -> Any:
        assert len(shown) == PASSES
        corner = shown[:, 48:, :16].astype(np.float32).std(axis=(1, 2, 3)) / 128
        return np.stack([corner, np.zeros_like(corner)], axis=1)

    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    cosine, found = occlusion(embed, noise, text)
    assert cosine == pytest.approx(float(noise[48:, :16].std() / 128), rel=1e-5)
    assert found.shape == (CELLS, CELLS)
    row, column = np.unravel_index(found.argmax(), found.shape)
    assert row >= 6 and column < 2
    assert np.abs(found[:5]).max() == 0 and np.abs(found[:, 3:]).max() == 0


@pytest.fixture
def quarters(tmp_path: Path) -> Path:
    """Eight drawings, each in one quarter of a white image, with a table of their boxes."""
    table = ["image\ttext\tleft\ttop\tright\tbottom"]
    for index, sample in zip(range(8), read("demo:val", max_bad_fraction=0, announce=False), strict=False):
        left, top = index % 2 * SIDE // 2, index // 2 % 2 * SIDE // 2
        image = Image.new("RGB", (SIDE, SIDE), "white")
        with Image.open(io.BytesIO(sample.image)) as drawing:
            image.paste(drawing.convert("RGB").resize((SIDE // 2, SIDE // 2)), (left, top))
        image.save(tmp_path / f"{index}.png")
        box = "\t".join(map(str, (left, top, left + SIDE // 2, top + SIDE // 2)))
        table.append(f"{index}.png\t{sample.captions[0]}\t{box}")
    (tmp_path / "boxes.tsv").write_text("\n".join(table) + "\n", encoding="utf-8")
    return tmp_path / "boxes.tsv"


def test_the_demo_s_teacher_points_at_what_is_named(cli: Callable[..., Any], quarters: Path) -> None:
    done = cli("pointing", "demo:teacher", "--boxes", quarters, "--json")
    assert done.code == 0, done.err
    said = json.loads(done.out.splitlines()[-1])
    assert said["method"] == "relevance"
    (model,) = said["models"]
    assert model == {
        "name": "teacher",
        "pairs": 8,
        "unseen": 0,
        "hits": 1.0,
        "interval": [1.0, 1.0],
        "chance": 0.25,
    } | {"flat": 0}


def test_a_picture_of_two_models_is_asked_in_one_way(cli: Callable[..., Any], quarters: Path, tmp_path: Path) -> None:
    image, out, graphs = quarters.parent / "0.png", tmp_path / "out.png", tmp_path / "graphs"
    assert cli("export", "demo:teacher", "--precision", "fp32", "--out", graphs).code == 0
    asked = ("explain", "demo:teacher", image, "a drawing", "--out", out, "--json")
    done = cli(*asked, "--beside", graphs)
    assert done.code == 0, done.err
    said = json.loads(done.out.splitlines()[-1])
    assert said["method"] == "occlusion" and [one["model"] for one in said["models"]] == ["teacher", "graphs"]
    assert np.allclose(said["models"][0]["map"], said["models"][1]["map"], atol=1e-5)
    with Image.open(out) as picture:
        assert picture.info["Software"] == "mmcompress explain" and picture.info["Description"] == "a drawing"
        assert picture.width > 3 * 224
    done = cli(*asked)
    assert done.code == 0 and json.loads(done.out.splitlines()[-1])["method"] == "relevance"
    done = cli(*asked, "--beside", graphs, "--method", "relevance")
    assert done.code == 2 and "is no float checkpoint" in done.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("explain", "demo:teacher", "{image}", "cat", "--out", "x.jpg"), "is no name of a PNG file"),
        (("explain", "demo:teacher", "{image}", "cat", "--out", "{image}"), "is read to make it"),
        (("explain", "demo:teacher", "{image}", "cat", "--out", "{other}"), "is no picture of explain"),
        (("explain", "demo:teacher", "{image}", " ", "--out", "x.png"), "says nothing"),
        (("explain", "demo:teacher", "none.png", "cat", "--out", "x.png"), "there is no image"),
        (("explain", "demo:teecher", "{image}", "cat", "--out", "x.png"), "did you mean"),
        (("explain", "demo:teacher", "{image}", "cat", "--out", "x.png", "--method", "gradcan"), "no method 'gradcan'"),
        (("pointing", "demo:teacher", "--boxes", "none.tsv"), "there is no table"),
    ],
)
def test_what_cannot_be_explained_is_refused(
    cli: Callable[..., Any], quarters: Path, arguments: tuple[str, ...], said: str
) -> None:
    places = {"image": quarters.parent / "0.png", "other": quarters.parent / "1.png"}
    done = cli(*(argument.format(**places) for argument in arguments))
    assert done.code == 2 and said in done.err and "hint:" in done.err


def test_the_box_goes_the_way_of_the_image() -> None:
    """A wide image: its middle is seen, so the left box is cut off, and half of the middle one's width is left."""
    assert not seen_boxes((200, 100), [(0, 0, 40, 100)], RULE).any()
    seen = seen_boxes((200, 100), [(100, 0, 200, 50)], RULE)
    assert seen[:31, 33:].all() and not seen[33:].any() and not seen[:, :31].any()
    touched = touched_cells(seen, 4)
    assert touched.tolist() == [[False, False, True, True]] * 2 + [[False] * 4] * 2


def test_a_box_that_is_thinner_than_a_pixel_is_the_pixel_it_lies_in() -> None:
    """As given, or once a large image is resized; both were said to be cut off, or to be no box."""
    for size, box in (((64, 64), (10.2, 20.3, 10.4, 20.4)), ((4096, 4096), (670.0, 1300.0, 671.0, 1301.0))):
        assert np.argwhere(seen_boxes(size, [box], RULE)).tolist() == [[20, 10]]
    assert seen_boxes((192, 192), [(1 * 192 / 64, 0, 2 * 192 / 64, 3)], RULE).sum() == 1, "edges touch no neighbour"
    assert seen_boxes((64, 64), [(60, 60, 70, 70)], RULE).sum() == 16, "what is in the image"
    with pytest.raises(CorruptInputError, match="beside the image of 64 x 64 pixels"):
        seen_boxes((64, 64), [(64, 0, 70, 10)], RULE)


def test_a_map_that_is_the_same_everywhere_points_at_nothing(
    quarters: Path, monkeypatch: pytest.MonkeyPatch, cli: Callable[..., Any]
) -> None:
    """Its first cell passed for the brightest, so what lies above on the left was a hit."""
    maps = [np.zeros((8, 8), np.float32), np.full((8, 8), -1, np.float32), np.eye(8, dtype=np.float32)]

    @contextmanager
    def asking(*_: object) -> Iterator[Any]:
        remaining = iter(maps)
        yield lambda pixels, text: (0.0, next(remaining))

    monkeypatch.setattr(game, "asking", asking)
    model = SimpleNamespace(image_processing=RULE)
    boxes = {(quarters.parent / "0.png", text): [(0.0, 0.0, 64.0, 64.0)] for text in ("zero", "below zero", "tie")}
    (found,) = game.pointing({"model": model}, boxes, "occlusion")  # type: ignore[dict-item]
    assert (found.pairs, found.hits, found.flat) == (3, 0.0, 2)
    boxes = {(quarters.parent / "0.png", "beside"): [(900.0, 0.0, 964.0, 64.0)]}
    with pytest.raises(CorruptInputError, match=r"0\.png: the box \(900.* lies beside"):
        game.pointing({"model": model}, boxes, "occlusion")  # type: ignore[dict-item]
    silent = Explanation("mine", 0.1, np.zeros((8, 8, 3), np.uint8), maps[0])
    lines = io.StringIO()
    rich.console.Console(file=lines, width=200).print(explained_summary("occlusion", [silent], quarters)[1])
    assert "the map of mine is the same everywhere" in lines.getvalue()
    Image.new("RGB", (64 * 101, 64)).save(quarters.parent / "0.png")
    done = cli("pointing", "demo:teacher", "--boxes", quarters)
    assert done.code == 4 and "0.png: an image of 6464 x 64 pixels" in done.err


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ("image\ttext\n", "no column 'left'"),
        ("image\ttext\tleft\ttop\tright\tbottom\nno.png\tcat\t0\t0\t1\t1\n", "line 2: there is no image"),
        ("image\ttext\tleft\ttop\tright\tbottom\n0.png\tcat\t0\t0\tx\t1\n", "line 2: .* are no four numbers"),
        ("image\ttext\tleft\ttop\tright\tbottom\n0.png\tcat\t5\t0\t1\t1\n", "line 2: .* is no box"),
        ("image\ttext\tleft\ttop\tright\tbottom\n0.png\tcat\tnan\t0\t1\t1\n", "are no four numbers"),
        ("image\ttext\tleft\ttop\tright\tbottom\n0.png\tcat\n", "are no four numbers"),
        ("image\ttext\tleft\ttop\tright\tbottom\n", "has no box"),
    ],
)
def test_a_damaged_table_is_named_by_its_line(quarters: Path, table: str, said: str) -> None:
    quarters.write_text(table)
    with pytest.raises((CorruptInputError, UsageError), match=said):
        read_boxes(quarters)


def test_the_brightest_spot_is_the_map_s_largest_value(tmp_path: Path) -> None:
    found = np.zeros((8, 8), dtype=np.float32)
    found[1, 6], found[5, 1] = 3.0, -9.0
    picture = np.asarray(lit(np.full((64, 64, 3), 128, dtype=np.uint8), found, 128).convert("L"))
    row, column = np.unravel_index(picture.argmax(), picture.shape)
    assert row // 16 == 1 and column // 16 == 6
    assert picture[88, 24] == picture[120, 120]  # what speaks against is as dark as what says nothing
    with pytest.raises(UsageError, match="no folder"):
        check_picture(tmp_path / "none" / "x.png", tmp_path / "y.png")
