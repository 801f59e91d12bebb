"""The page in headless Chromium: its answers, ids and pixels are those of Python, and nothing leaves it."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import browser
import numpy as np
import onnx
import pytest
import small_tokenizers
from numpy.typing import NDArray
from onnx import numpy_helper
from PIL import Image
from site_folder import fetch_packages, served
from test_browser import CONTRAST
from tokenizers import Tokenizer
from toy_model import Model, image_onnx, make_model, text_onnx

from mmcompress.artifact import Artifact
from mmcompress.data.layout import prompts
from mmcompress.data.preprocess import normalize, to_array
from mmcompress.export.folders import tokenizer_of
from mmcompress.manifest import Graph, Kind, Preprocessing, TensorSpec, TextProcessing
from mmcompress.packaged import packaged
from mmcompress.pipeline import standalone
from mmcompress.report.page.page import resizing
from mmcompress.report.page.readable import ends, readable
from mmcompress.runtime import answers
from mmcompress.runtime.encoder import Encoder
from mmcompress.runtime.tokenize import attention_mask, tokenize

pytestmark = [
    pytest.mark.network,
    pytest.mark.skipif(browser.EXECUTABLE is None, reason="no chromium on the PATH (apt install chromium)"),
]
CONTEXT, DIM, SIDE = 6, 16, 8
LABELS = ["red apple", "a blue circle", "flag: Mali", "短裤", "cat's"]
RULE = Preprocessing(size=SIDE, resize=SIDE, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))


def artifact_at(path: Path, seed: int) -> Artifact:
    """A toy in INT8 that reads texts with the demo's tokenizer."""
    toy = make_model(seed, DIM)
    table = np.random.default_rng(seed).standard_normal((6000, DIM), dtype=np.float32)
    toy = Model(toy.first, toy.second, table)
    output = (TensorSpec(name="embedding", shape=(None, DIM), dtype="float32"),)
    pixels = (TensorSpec(name="pixels", shape=(None, 3, SIDE, SIDE), dtype="float32"),)
    tokens = (TensorSpec(name="tokens", shape=(None, CONTEXT), dtype="int32"),)
    with Artifact.create(path, kind=Kind.ONNX, stage="export", key=path.name) as draft:
        (draft.path / "image.onnx").write_bytes(within_16_bits(image_onnx(toy, quantized=True)).SerializeToString())
        (draft.path / "text.onnx").write_bytes(text_onnx(toy).SerializeToString())
        int8: Any = {"precision": "int8", "activations": "unsigned", "outputs": output}
        draft.graphs += [
            Graph(file="image.onnx", tower="image", inputs=pixels, **int8),
            Graph(file="text.onnx", tower="text", inputs=tokens, **int8),
        ]
        tokenizer = Path(packaged("demo:teacher")) / "tokenizer.json"
        (draft.path / "tokenizer.json").write_bytes(tokenizer.read_bytes())
        draft.preprocessing = RULE
        draft.tokenizer = TextProcessing(context=CONTEXT, pad_token_id=1, eos_token_id=1)
        draft.facts = {"logit_scale": 20.0}
    return Artifact.open(path)


def within_16_bits(model: onnx.ModelProto) -> onnx.ModelProto:
    """With weights of 7 bits, as our files for CPUs keep their products: WebAssembly's may saturate, as old x86's."""
    for tensor in model.graph.initializer:
        if tensor.name in ("w8", "ws"):
            values = numpy_helper.to_array(tensor)
            halved = values // 2 if tensor.name == "w8" else values * np.float32(2)
            tensor.CopyFrom(numpy_helper.from_array(halved.astype(values.dtype), tensor.name))
    return model


@dataclass(frozen=True)
class Site:
    folder: Path
    models: list[Artifact]
    page: browser.Page
    address: str


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Two models side by side, opened once; tests look at the page in turn."""
    fetch_packages(tmp_path_factory)
    folder = tmp_path_factory.mktemp("page")
    models = [artifact_at(folder / name, seed) for seed, name in enumerate(("student", "teacher"))]
    given = {"data.test": "demo:test", "pictures": 3}
    made = standalone.page(models[0].path, models[1].path, folder / "site", given)
    with served(made.path) as address, browser.opened(tmp_path_factory.mktemp("profile")) as page:
        page.load(address)
        assert page.evaluate("import('./app.js').then(() => document.getElementById('status').textContent)") == (
            "Ready. In your browser: student and teacher."
        )
        yield Site(made.path, models, page, address)


def photos(folder: Path, count: int) -> list[Path]:
    """Colours of all kinds, in sizes of all kinds; PNG, JPEG and WebP."""
    draw = np.random.default_rng(7)
    paths = []
    for index in range(count):
        coarse = draw.integers(0, 256, (draw.integers(2, 7), draw.integers(2, 7), 3), dtype=np.uint8)
        size = (int(draw.integers(5, 90)), int(draw.integers(5, 90)))
        path = folder / f"{index}.{('png', 'jpg', 'webp')[index % 3]}"
        Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(path)
        paths.append(path)
    return paths


def as_file(path: Path) -> str:
    """JavaScript that has the file's bytes."""
    return f"new Blob([Uint8Array.from(atob('{base64.b64encode(path.read_bytes()).decode()}'), c => c.charCodeAt(0))])"


def asked(page: browser.Page, expression: str) -> Any:
    """With the page's own worker and models at hand."""
    modules = "Promise.all([import('./app.js'), import('./models.js')])"
    return page.evaluate(f"{modules}.then(async ([{{ ask, description }}, models]) => {expression})")


def test_answers_are_those_of_classify(site: Site, tmp_path: Path) -> None:
    """On 100 images of three formats; `classify` runs the same graphs on ONNX Runtime."""
    for path in photos(tmp_path, 100):
        said = json.dumps([LABELS, "a {}"])
        found = asked(site.page, f"models.classified(ask, description.models, {as_file(path)}, ...{said})")
        for model, one in zip(site.models, found, strict=True):
            with Encoder.open(model, "onnxruntime") as encoder:
                expected = answers.classify(encoder, path, LABELS, "a {}")
            assert one["shares"][0]["label"] == expected[0][0]
            shares = {entry["label"]: entry["share"] for entry in one["shares"]}
            assert shares == pytest.approx(dict(expected), abs=1e-4)
            assert one["image_ms"] >= 0 and one["prepare_ms"] >= 0


def test_search_finds_what_python_finds(site: Site, tmp_path: Path) -> None:
    paths = photos(tmp_path, 9)
    pictures = f"await Promise.all([{','.join(map(as_file, paths))}].map((file) => ask('image', file)))"
    found = asked(site.page, f"models.found(ask, description.models, '短裤', {pictures})")
    for model, one in zip(site.models, found, strict=True):
        with Encoder.open(model, "onnxruntime") as encoder:
            scores = encoder.image_files(paths) @ encoder.texts(["短裤"])[0]
        assert [match["cosine"] for match in one["matches"]] == pytest.approx(sorted(scores, reverse=True), abs=1e-5)


def golden_texts() -> list[str]:
    names = [Path(packaged(f"demo:{name}")).read_text(encoding="utf-8").splitlines() for name in ("names", "names-zh")]
    rare = ["𠀀猫𠂏 dog", "Ϋ́ ΟΔΟΣ Σ", "dog <|endoftext|>", "a <|ENDOFTEXT|>", "ſtraße", "dog <mask> cat"]
    return [*small_tokenizers.hard_texts(500), *names[0][:150], *names[1][:150], *rare]


def tokenizers_of(folder: Path) -> dict[str, Tokenizer]:
    """Of each kind that a page takes."""
    kinds: dict[str, Tokenizer] = {"demo": Tokenizer.from_file(str(Path(packaged("demo:teacher")) / "tokenizer.json"))}
    for name in ("clip", "chinese clip", "altclip"):
        (folder / name).mkdir()
        kinds[name] = tokenizer_of(small_tokenizers.FAMILIES[name](folder / name)).backend_tokenizer
    return kinds


@pytest.mark.parametrize("lowercase, prefix", [(False, ""), (True, "▁x")])
def test_ids_and_masks_are_those_of_python(site: Site, tmp_path: Path, lowercase: bool, prefix: str) -> None:
    texts = golden_texts()
    for name, tokenizer in tokenizers_of(tmp_path).items():
        pad = tokenizer.get_vocab_size() - 1
        processing = TextProcessing(context=20, pad_token_id=pad, eos_token_id=pad, lowercase=lowercase, prefix=prefix)
        begin, end = ends(tokenizer, name)
        rule = {"context": 20, "begin": begin, "end": end, "pad": pad, "eos": pad, "mask": True}
        rule |= {"lowercase": lowercase, "prefix": prefix}
        given = json.dumps([readable(tokenizer, name), rule, texts])
        found = site.page.evaluate(
            f"""import('./texts.js').then(({{ reader, mask }}) => {{
              const [tokenizer, rule, texts] = {given};
              const ids = texts.map(reader(tokenizer, rule));
              return [ids, ids.map((one) => mask(one, rule))].map((rows) => rows.map((row) => [...row]));
            }})"""
        )
        expected = tokenize(tokenizer, texts, processing)
        wrong = [text for text, a, b in zip(texts, found[0], expected.tolist(), strict=True) if a != b]
        assert wrong == [], name
        np.testing.assert_array_equal(np.array(found[1]), attention_mask(expected, processing))


FILTERS = ("nearest", "bilinear", "bicubic", "lanczos", "box", "hamming")
RULES = [
    *({"size": 32, "resize": 32, "interpolation": one} for one in FILTERS),
    {"size": 24, "resize": 33, "centre": "even"},
    {"size": 24, "resize": 33},
    {"size": 40, "resize": 32},
    {"size": 16, "resize": 16, "squash": True},
]


@pytest.mark.parametrize("said", RULES, ids=lambda rule: "-".join(map(str, rule.values())))
def test_pixels_are_those_of_python(site: Site, said: dict[str, Any]) -> None:
    """To the byte, and to the bit of what they become: photos, noise, transparency, grey, palettes, a turned photo."""
    rule = Preprocessing(**{"mean": (0.48, 0.46, 0.41), "std": (0.27, 0.26, 0.28), **said})
    for name, content in images().items():
        image = Image.open(io.BytesIO(content))
        expected = to_array(image, rule)
        found, normal = drawn(site.page, content, rule)
        np.testing.assert_array_equal(found.reshape(expected.shape), expected, err_msg=name)
        np.testing.assert_array_equal(normal, normalize(expected[None], rule).ravel(), err_msg=name)


def images() -> dict[str, bytes]:
    draw = np.random.default_rng(3)
    noise = Image.fromarray(draw.integers(0, 256, (61, 97, 3), dtype=np.uint8))
    smooth = noise.resize((9, 7)).resize((200, 150), Image.Resampling.BICUBIC)
    exif = Image.Exif()
    exif[0x0112] = 6
    clear = Image.new("RGBA", (50, 70), (10, 200, 30, 0))
    clear.paste((200, 10, 60, 255), (10, 10, 40, 30))
    return {
        "noise": stored(noise, "PNG"),
        "small": stored(noise.crop((0, 0, 13, 11)), "PNG"),
        "jpeg": stored(smooth, "JPEG"),
        "turned": stored(smooth, "JPEG", exif=exif),
        "webp": stored(smooth, "WEBP"),
        "grey": stored(smooth.convert("L"), "PNG"),
        "palette": stored(smooth.quantize(16), "PNG"),
        "transparent": stored(clear, "PNG"),
        "wide": stored(noise.resize((300, 20)), "PNG"),
        "tall": stored(noise.resize((31, 140)), "PNG"),
        "taller": stored(noise.resize((40, 129)), "PNG"),
    }


def stored(image: Image.Image, kind: str, **how: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **how)
    return stream.getvalue()


def drawn(page: browser.Page, content: bytes, rule: Preprocessing) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    encoded = base64.b64encode(content).decode()
    found = page.evaluate(
        f"""import('./pixels.js').then(async ({{ decoded, prepared, normalized }}) => {{
          const bytes = Uint8Array.from(atob("{encoded}"), (c) => c.charCodeAt(0));
          const rule = {resizing(rule).model_dump_json()};
          const pixels = prepared(await decoded(new Blob([bytes])), rule);
          return [[...pixels], [...normalized(pixels, rule)]];
        }})"""
    )
    return np.array(found[0], np.uint8), np.array(found[1], np.float32)


def test_photos_of_which_nothing_is_said_are_called_by_their_names(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Sentences that stand in for captions, of goats and nurses, were their names, the labels and the searches."""
    fetch_packages(tmp_path_factory)
    (tmp_path / "photos").mkdir()
    photos(tmp_path / "photos", 3)
    given = {"data.test": str(tmp_path / "photos")}
    made = standalone.page(artifact_at(tmp_path / "model", 0).path, None, tmp_path / "site", given)
    said = json.loads((made.path / "page.json").read_text())
    assert [picture["caption"] for picture in said["pictures"]] == ["0.png", "1.jpg", "2.webp"]
    assert said["labels"] == said["queries"] == []


def test_a_reader_uses_the_page(site: Site, tmp_path: Path) -> None:
    """A file in the input is classified, one more is searched, and all of it is said in the live region."""
    (photo,) = photos(tmp_path, 1)
    page = site.page
    choose(page, "one", photo)
    said = spoken(page, "classify")
    with Encoder.open(site.models[0], "onnxruntime") as encoder:
        labels = [picture["caption"] for picture in json.loads((site.folder / "page.json").read_text())["pictures"]]
        best, share = answers.classify(encoder, photo, labels)[0]
    found = re.match(r"student: (.+), ([\d.]+)%\. teacher: ", said)
    assert found is not None and found[1] == best and float(found[2]) / 100 == pytest.approx(share, abs=0.01)
    assert page.evaluate("document.querySelectorAll('#shares table caption').length") == 2
    choose(page, "many", photo)
    page.evaluate("document.getElementById('query').value = '短裤'")
    assert "student finds" in spoken(page, "search")
    assert page.evaluate("document.querySelectorAll('#pictures li').length") == 4
    page.evaluate("document.getElementById('labels').value = 'alone'")
    assert "at least two labels" in spoken(page, "classify")
    assert page.complaints() == []


def test_the_answer_is_that_of_the_picture_that_is_shown(site: Site, tmp_path: Path) -> None:
    """A large picture takes longer to decode than the small one that is chosen after it; a broken one has no answer."""
    page, (large, small) = site.page, (tmp_path / "large.png", tmp_path / "small.png")
    noise = np.random.default_rng(0).integers(0, 256, (1500, 2000, 3), dtype=np.uint8)
    Image.fromarray(noise).save(large, compress_level=1)
    Image.new("RGB", (20, 20), (230, 20, 20)).save(small)
    page.evaluate(f"document.getElementById('labels').value = {json.dumps(chr(10).join(LABELS))}")
    dropped(page, large, small)
    with Encoder.open(site.models[0], "onnxruntime") as encoder:
        expected = {label: f"{100 * share:.1f}%" for label, share in answers.classify(encoder, small, LABELS)}
    assert page.evaluate("document.getElementById('preview').alt") == "small.png"
    assert dict(page.evaluate(SHARES)) == expected
    (tmp_path / "broken.png").write_bytes(b"no picture")
    dropped(page, tmp_path / "broken.png")
    assert "That did not work" in page.evaluate("document.getElementById('status').textContent")
    assert page.evaluate(SHARES) == [], "of the picture before"


SHARES = """[...document.querySelectorAll('#shares table:first-child tbody tr')].map(
  (row) => [row.cells[0].textContent, row.cells[1].textContent])"""


def dropped(page: browser.Page, *paths: Path) -> None:
    """Each picture is dropped on the page, one right after another."""
    files = ",".join(f"new File([{as_file(path)}], {json.dumps(path.name)}, {{type: 'image/png'}})" for path in paths)
    page.evaluate(
        f"""[{files}].forEach((file) => {{
          const dataTransfer = new DataTransfer();
          dataTransfer.items.add(file);
          document.getElementById('drop-one').dispatchEvent(new DragEvent('drop', {{dataTransfer}}));
        }})"""
    )
    idle(page)


def test_labels_with_dollars_are_put_in_as_they_are(site: Site) -> None:
    """JavaScript's `replaceAll` reads `$$` and `$&` as signs of its own."""
    labels = ["$& and", "A$$P", "$'"]
    expression = f"""(async () => {{
      const texts = [];
      const spy = (_, of) => {{ texts.push(of); throw new Error('enough'); }};
      await models.classified(spy, description.models, null, {json.dumps(labels)}, 'a {{}} {{}}').catch(() => null);
      return texts[0];
    }})()"""
    assert asked(site.page, expression) == prompts(labels, ["a {} {}"])


def choose(page: browser.Page, name: str, path: Path) -> None:
    root = page.call("DOM.getDocument")["root"]["nodeId"]
    node = page.call("DOM.querySelector", nodeId=root, selector=f"#{name}")["nodeId"]
    page.call("DOM.setFileInputFiles", nodeId=node, files=[str(path)])
    idle(page)


def spoken(page: browser.Page, form: str) -> str:
    """What is said once a form that was sent is answered."""
    page.evaluate(f"document.getElementById('{form}').requestSubmit()")
    idle(page)
    return str(page.evaluate("document.getElementById('status').textContent"))


def idle(page: browser.Page) -> None:
    page.evaluate(
        """new Promise((done) => {
          const look = () => document.body.hasAttribute('aria-busy') ? setTimeout(look, 5) : done();
          setTimeout(look, 20);
        })"""
    )


def test_the_keyboard_reaches_everything_and_everything_has_a_name(site: Site) -> None:
    page = site.page
    page.evaluate("document.activeElement.blur()")
    names = []
    for _ in range(40):
        for kind in ("rawKeyDown", "keyUp"):
            page.call("Input.dispatchKeyEvent", type=kind, key="Tab", code="Tab", windowsVirtualKeyCode=9)
        names.append(page.evaluate("document.activeElement.id || document.activeElement.textContent"))
    assert {"one", "labels", "template", "many", "query", "Classify", "Search"} <= set(names)
    unnamed = [
        node["role"]["value"]
        for node in page.call("Accessibility.getFullAXTree")["nodes"]
        if node.get("role", {}).get("value") in ("button", "textbox", "image", "list", "searchbox", "table", "region")
        and not node["ignored"]
        and not node.get("name", {}).get("value")
    ]
    assert unnamed == []
    roles = page.evaluate("[...document.querySelectorAll('[aria-live]')].map((one) => one.getAttribute('role'))")
    assert roles == ["status"]


def test_no_request_leaves_the_page(site: Site) -> None:
    """Of what was loaded all is of its own origin; the browser refuses others to the page and to a worker of it."""
    page = site.page
    page.load(site.address)
    asked(page, "description.title")
    urls = [request["request"]["url"] for request in page.of("Network.requestWillBeSent")]
    assert len(urls) > 8
    assert [url for url in urls if not url.startswith((site.address, f"blob:{site.address}", "data:,"))] == []
    assert page.complaints() == []
    other = "fetch('http://127.0.0.1:9/').then(() => 'sent', () => 'refused')"
    assert page.evaluate(other) == "refused"
    assert any("Content Security Policy" in said for said in page.complaints())
    worker = f"onmessage = async () => postMessage(await {other})"
    page.events.clear()
    assert (
        page.evaluate(
            f"""new Promise((done) => {{
              const code = new Blob([{json.dumps(worker)}], {{ type: 'text/javascript' }});
              const worker = new Worker(URL.createObjectURL(code), {{ type: 'module' }});
              worker.onmessage = (event) => done(event.data);
              worker.postMessage('');
            }})"""
        )
        == "refused"
    )
    assert any("Content Security Policy" in said for said in page.complaints())
    page.events.clear()


def test_narrow_page_does_not_scroll_sideways(site: Site) -> None:
    site.page.call("Emulation.setDeviceMetricsOverride", width=360, height=800, deviceScaleFactor=1, mobile=True)
    assert site.page.evaluate("document.documentElement.scrollWidth") == 360
    site.page.call("Emulation.clearDeviceMetricsOverride")


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_has_the_contrast_of_wcag_aa(site: Site, theme: str) -> None:
    site.page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": theme}])
    assert site.page.evaluate(CONTRAST) >= 4.5
