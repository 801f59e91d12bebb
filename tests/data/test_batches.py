"""Batches: the same whatever the threads, the interruptions and the processes; pixels equal to transformers'."""

from __future__ import annotations

import io
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from shards import SMALL, pair, picture, png_of, shard, write_tar

from mmcompress.data.batches import Batch, batches, check_readable, decode
from mmcompress.errors import CorruptInputError, UsageError
from mmcompress.manifest import Preprocessing


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Three shards of 20 samples."""
    folder = tmp_path_factory.mktemp("three")
    for n in range(3):
        shard(folder / f"s{n}.tar", 20, start=20 * n)
    return str(folder / "s{0..2}.tar")


def made(spec: object, **options: Any) -> list[Batch]:
    return list(batches(str(spec), SMALL, **{"batch": 8, "workers": 2, "max_bad_fraction": 1.0, **options}))


def keys(found: list[Batch]) -> list[list[str]]:
    return [batch.keys for batch in found]


def flat(found: list[Batch]) -> list[str]:
    return [key for batch in found for key in batch.keys]


@pytest.mark.parametrize("size", [(200, 133), (97, 301), (64, 64), (33, 32), (20, 50), (225, 224)])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_decode_matches_transformers(size: tuple[int, int], interpolation: Any) -> None:
    transformers = pytest.importorskip("transformers")
    for resize, crop in ((64, 64), (73, 64), (40, 64)):
        processor = transformers.CLIPImageProcessor(
            size={"shortest_edge": resize},
            crop_size={"height": crop, "width": crop},
            resample={"bicubic": 3, "bilinear": 2}[interpolation],
            do_rescale=False,
            do_normalize=False,
        )
        preprocessing = Preprocessing(
            size=crop, resize=resize, interpolation=interpolation, mean=SMALL.mean, std=SMALL.std
        )
        for kind in ("JPEG", "PNG", "WEBP"):
            data = picture(1, size, kind)
            reference = processor(Image.open(io.BytesIO(data)), return_tensors="np")["pixel_values"][0]
            pixels = decode(data, preprocessing)
            assert pixels.dtype == np.uint8 and pixels.shape == (crop, crop, 3)
            np.testing.assert_array_equal(pixels.transpose(2, 0, 1), reference)


def test_transparent_images_lie_on_white() -> None:
    clear = Image.new("RGBA", (16, 16), (255, 0, 0, 0))
    clear.paste((0, 0, 255, 255), (0, 0, 16, 8))
    for kind, options in (("PNG", {}), ("WEBP", {"lossless": True})):
        buffer = io.BytesIO()
        clear.save(buffer, kind, **options)
        pixels = decode(buffer.getvalue(), SMALL)
        assert (pixels[:8] == (0, 0, 255)).all() and (pixels[8:] == 255).all()


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (picture()[:-20], "an image cannot be decoded: the JPEG is truncated"),
        (b"BM" + bytes(100), "an image cannot be decoded: the image is no JPEG, PNG or WebP"),
        (
            png_of(20_000, 20_000),
            "an image cannot be decoded: the image is 20000 x 20000 pixels large, and more than 67,108,864 are refused",
        ),
        (png_of(8, 8), "an image cannot be decoded: "),
        (picture(size=(1, 3000)), "an image of 1 x 3000 pixels is more than"),
    ],
)
def test_decode_errors(data: bytes, what: str) -> None:
    limit = Image.MAX_IMAGE_PIXELS
    with pytest.raises(CorruptInputError) as caught:
        decode(data, SMALL)
    assert caught.value.what.startswith(what)
    assert caught.value.exit_code == 4
    assert limit == Image.MAX_IMAGE_PIXELS


def test_sequential_batches(three: str) -> None:
    found = made(three)
    assert flat(found) == [f"s{n // 20}/{n:06d}" for n in range(60)]
    assert [len(batch.keys) for batch in found] == [8] * 7 + [4]
    assert [len(batch.keys) for batch in made(three, drop_last=True)] == [8] * 7
    last = found[-1]
    assert (last.captions[-1], last.labels[-1], last.seen[-1]) == (("number 59",), None, True)
    assert last.pixels.dtype == np.uint8 and last.pixels.shape == (4, 16, 16, 3)
    np.testing.assert_array_equal(last.pixels[-1], decode(picture(59), SMALL))


@pytest.mark.parametrize("seed", [None, 3])
def test_threads_change_nothing(three: str, seed: int | None) -> None:
    one, five = (made(three, shuffle_seed=seed, workers=workers, batch=40) for workers in (1, 5))
    assert keys(one) == keys(five)
    for left, right in zip(one, five, strict=True):
        np.testing.assert_array_equal(left.pixels, right.pixels)


def test_an_epoch_is_a_function_of_seed_and_epoch(three: str) -> None:
    orders = {(seed, epoch): flat(made(three, shuffle_seed=seed, epoch=epoch)) for seed in (0, 1) for epoch in (0, 1)}
    assert len({tuple(order) for order in orders.values()}) == 4
    for (seed, epoch), order in orders.items():
        assert order == flat(made(three, shuffle_seed=seed, epoch=epoch))
        assert sorted(order) == flat(made(three))
    expected = ["s2/000041", "s1/000021", "s1/000029"]  # any other machine and Python version shuffles alike
    assert orders[0, 0][:3] == expected


@pytest.mark.parametrize("buffer", [1, 7, 59, 60])
def test_small_buffers_lose_and_repeat_nothing(three: str, buffer: int) -> None:
    order = flat(made(three, shuffle_seed=5, buffer=buffer))
    assert sorted(order) == flat(made(three))
    if buffer > 1:
        first = {key[:2] for key in order[:10]}
        assert order != sorted(order) and (buffer < 40 or len(first) > 1)


@pytest.mark.parametrize("seed", [None, 2])
@pytest.mark.parametrize("skip", [1, 4, 7, 8, 99])
def test_skipping_is_what_would_have_followed(three: str, seed: int | None, skip: int) -> None:
    whole = made(three, shuffle_seed=seed, epoch=2)
    rest = made(three, shuffle_seed=seed, epoch=2, skip=skip)
    assert keys(rest) == keys(whole)[skip:]


def test_skipping_decodes_nothing(three: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from mmcompress.data import decoding as data

    decoded: list[bytes] = []
    pixels = data._pixels

    def counted(image: bytes, preprocessing: Preprocessing) -> NDArray[np.uint8]:
        decoded.append(image)
        return pixels(image, preprocessing)

    monkeypatch.setattr(data, "_pixels", counted)
    made(three, skip=6)
    assert len(decoded) == 60 - 48


@pytest.mark.parametrize("room", [60, 5])
def test_kept_images_are_decoded_once(three: str, monkeypatch: pytest.MonkeyPatch, room: int) -> None:
    from mmcompress.data import decoding as data

    expected = [made(three, shuffle_seed=2, epoch=epoch) for epoch in (0, 1)]
    decoded: list[bytes] = []
    pixels = data._pixels

    def counted(image: bytes, preprocessing: Preprocessing) -> NDArray[np.uint8]:
        decoded.append(image)
        return pixels(image, preprocessing)

    monkeypatch.setattr(data, "_pixels", counted)
    monkeypatch.setattr(data, "KEPT_BYTES", room * 16 * 16 * 3)
    kept: dict[str, NDArray[np.uint8]] = {}
    for epoch in (0, 1):
        found = made(three, shuffle_seed=2, epoch=epoch, workers=1, kept=kept)
        assert keys(found) == keys(expected[epoch])
        for left, right in zip(found, expected[epoch], strict=True):
            np.testing.assert_array_equal(left.pixels, right.pixels)
    assert len(kept) == room and len(decoded) == 2 * 60 - room


def test_two_processes_equal_one(three: str) -> None:
    whole = made(three, shuffle_seed=1, batch=16, drop_last=True)
    ranks = [made(three, shuffle_seed=1, batch=8, drop_last=True, rank=rank, world=2) for rank in (0, 1)]
    assert [len(found) for found in ranks] == [3, 3]
    for together, left, right in zip(whole, *ranks, strict=True):
        assert together.keys[::2] == left.keys and together.keys[1::2] == right.keys


def test_ranks_get_equally_many_batches_and_all_samples_otherwise(three: str) -> None:
    for world in (3, 7, 8):
        options: dict[str, Any] = {"world": world, "batch": 5}
        full = [made(three, rank=rank, drop_last=True, **options) for rank in range(world)]
        assert {len(found) for found in full} == {60 // world // 5}
        rest = [flat(made(three, rank=rank, **options)) for rank in range(world)]
        assert sorted(key for found in rest for key in found) == flat(made(three))


def broken(tmp_path: Path) -> Path:
    """12 samples; 2, 3 and 11 look whole and do not decode, and 5 is cut."""
    files = []
    for n in range(12):
        image = png_of(16, 16) if n in (2, 3, 11) else picture(n, kind="PNG")[: -30 if n == 5 else None]
        files += [(f"{n:02d}.png", image), (f"{n:02d}.txt", b"x")]
    return write_tar(tmp_path / "x.tar", files)


def test_undecodable_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, log = broken(tmp_path), tmp_path / "bad.txt"
    plain = made(path, batch=4, log=log)
    assert keys(plain) == [["x/00", "x/01"], ["x/04", "x/06", "x/07", "x/08"], ["x/09", "x/10"]]
    assert "4 of 12 items cannot be read and were skipped" in capsys.readouterr().err
    lines = log.read_text().splitlines()
    assert lines[0] == f"{path}: 05: the PNG is truncated"
    assert [line.split(": ")[0] for line in lines[1:]] == ["x/02", "x/03", "x/11"]
    assert all("the image cannot be decoded" in line for line in lines[1:])

    shuffled = made(path, batch=4, shuffle_seed=0, log=log)
    assert [len(batch.keys) for batch in shuffled] == [4, 4, 3]
    assert set(flat(shuffled)) == set(flat(plain))
    assert [len(batch.pixels) for batch in shuffled] == [4, 4, 3]
    assert max(Counter(flat(shuffled)).values()) > 1
    assert keys(made(path, batch=4, shuffle_seed=0, skip=1)) == keys(shuffled)[1:]
    with pytest.raises(CorruptInputError, match=r"4 of 12 items cannot be read, more than 10%"):
        made(path, batch=4, max_bad_fraction=0.1)


def test_only_undecodable_images(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", [("0.png", png_of(16, 16)), ("0.txt", b"x")])
    with pytest.raises(CorruptInputError, match="has no readable sample; 1 of 1 items cannot be read: x/0: the image"):
        made(path)


def test_a_look_at_a_small_set_says_what_a_pass_would(tmp_path: Path) -> None:
    path = str(broken(tmp_path))
    for seed in (None, 0):
        with pytest.raises(CorruptInputError, match=r"4 of 12 items cannot be read, more than 10%: .*the PNG is trunc"):
            check_readable(path, 0.1, seed)
        check_readable(path, 0.34, seed)
    check_readable("pipe:false", 0.0)


def test_a_look_at_a_large_set_goes_as_far_as_a_pass_before_it_judges(tmp_path: Path) -> None:
    image = picture(kind="PNG")
    for number in range(1200):
        (tmp_path / f"{number:04d}.png").write_bytes(b"some text" if number % 18 == 0 else image)
    with pytest.raises(CorruptInputError, match=r"of the first 1000 items cannot be read, more than 5%"):
        check_readable(str(tmp_path), 0.05)
    check_readable(str(tmp_path), 0.06)
    with pytest.raises(CorruptInputError, match="of the first"):
        made(tmp_path, max_bad_fraction=0.05)


def test_warnings_come_once_and_not_at_each_epoch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_tar(tmp_path / "x.tar", [*pair("a"), *pair("b", caption=None)])
    for epoch in range(3):
        made(path, shuffle_seed=0, epoch=epoch)
    assert capsys.readouterr().err.count("warning: ") == 1


def test_too_few_samples_for_a_batch(three: str) -> None:
    for options in ({"batch": 61}, {"batch": 16, "world": 4}, {"batch": 1, "world": 61}):
        with pytest.raises(UsageError) as caught:
            made(three, drop_last=True, **options)
        assert caught.value.what == (
            f"{three} has 60 samples, which do not fill one batch of {options['batch']} on every process"
        )
        assert caught.value.hint == "give a smaller batch, or more data"


def test_missing_data_is_an_error_at_once() -> None:
    with pytest.raises(UsageError, match=r"there is no nowhere\.tar"):
        batches("nowhere.tar", SMALL, batch=2)


def test_stopping_early_leaves_no_thread(three: str) -> None:
    import threading

    stream = batches(three, SMALL, batch=2, workers=3)
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("decode")]


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Six compressed shards of 20 samples, the last one of 2."""
    folder = tmp_path_factory.mktemp("packed")
    for n in range(6):
        files = [file for k in range(20 if n < 5 else 2) for file in pair(f"{k:02d}", 20 * n + k)]
        write_tar(folder / f"p{n}.tar.gz", files, "w:gz")
    return str(folder / "p{0..5}.tar.gz")


def own(spec: str, rank: int, world: int, **options: Any) -> list[Batch]:
    options = {"shuffle_seed": 4, "batch": 5, "drop_last": True, "length": 5, **options}
    return made(spec, rank=rank, world=world, **options)


def test_processes_share_shards_that_are_read_in_a_row(packed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from mmcompress.data import parsing

    opened: list[str] = []
    members = parsing.members
    assert len(own(packed, 0, 1)) == 20  # as without: 102 samples

    def counted(shard: str, **said: Any) -> Any:
        opened.append(Path(shard).name)
        return members(shard, **said)

    monkeypatch.setattr(parsing, "members", counted)
    shares = [own(packed, rank, 3) for rank in range(3)]
    assert [len(share) for share in shares] == [5, 5, 5]
    assert all(len(batch.keys) == 5 for share in shares for batch in share)
    by_rank = [{key.partition("/")[0] for key in flat(share)} for share in shares]
    assert sorted(name for names in by_rank for name in names) == [f"p{n}.tar.gz".partition(".")[0] for n in range(6)]
    whole = [Counter(flat(share)) for share in shares]
    assert sorted(max(of_rank.values()) for of_rank in whole) == [1, 1, 2]  # one has 22 samples for 25 places
    assert max(Counter(opened).values()) <= 2  # the small one's shards are read twice
    again = [{key.partition("/")[0] for key in flat(own(packed, rank, 3, epoch=1))} for rank in range(3)]
    assert again != by_rank


@pytest.mark.parametrize("skip", [1, 4])
def test_a_resume_among_own_shards(packed: str, skip: int) -> None:
    for rank in range(2):
        whole = own(packed, rank, 2, length=14)  # beyond one pass
        assert len(whole) == 14 and keys(own(packed, rank, 2, length=14, skip=skip)) == keys(whole)[skip:]


def test_shards_are_not_shared_out_where_they_have_offsets_or_do_not_suffice(three: str, packed: str) -> None:
    for spec, world in ((three, 2), (packed, 7)):
        ranks = [flat(own(spec, rank, world, batch=2, length=1)) for rank in range(world)]
        assert ranks == [
            flat(made(spec, rank=rank, world=world, shuffle_seed=4, batch=2, drop_last=True)) for rank in range(world)
        ]


def test_a_process_whose_shards_are_empty_is_an_error(tmp_path: Path) -> None:
    for n in range(2):
        write_tar(tmp_path / f"{n}.tar.gz", pair("a") if n else [], "w:gz")
    with pytest.raises((CorruptInputError, UsageError), match=r"have no sample|no readable sample"):
        for rank in range(2):
            own(str(tmp_path), rank, 2, batch=1, length=3)


def test_the_buffer_is_bounded_in_bytes(packed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from mmcompress.data import batches as data
    from mmcompress.data.sample import Sample

    samples = [Sample(f"{n}", bytes(100 + n % 50), ("x",), None, True) for n in range(400)]
    monkeypatch.setattr(data, "BUFFER_BYTES", 3000)
    came = 0

    def stream() -> Any:
        nonlocal came
        for sample in samples:
            came += len(sample.image)
            yield sample

    went, found = 0, []
    for sample in data._shuffled(stream(), random.Random(0), 1000):
        assert came - went <= 3000 + 150
        went += len(sample.image)  # type: ignore[union-attr]
        found.append(sample.key)
    assert found != [sample.key for sample in samples] and sorted(found) == sorted(sample.key for sample in samples)
