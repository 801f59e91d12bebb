"""Files of weights, of safetensors or torch's own: which of a folder count, what they hold, and whether it is numbers.

A number that is NaN makes every embedding NaN, which shows when the model has been loaded and run. The files themselves
tell it in a fifth of a second a gigabyte, so they are asked first.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from zipfile import is_zipfile

import torch
from safetensors import safe_open
from torch import Tensor

from mmcompress.architecture import WEIGHTS
from mmcompress.errors import CorruptInputError, UsageError
from mmcompress.strictjson import read_json

WEIGHT_FILES = (WEIGHTS, "pytorch_model.bin")
"""What transformers looks for, the first one first. A checkpoint of ours has the first."""
_RESTORE = "restore it from where it came"


def weight_files(folder: Path, names: Sequence[str] = WEIGHT_FILES) -> list[Path]:
    """The first of these files that is there, or the shards that its index lists."""
    for name in names:
        if (folder / name).is_file():
            return [folder / name]
        if (index := folder / f"{name}.index.json").is_file():
            return _shards(index)
    raise UsageError(f"{folder} has no {names[0]}", f"give a folder with its weights as {' or '.join(names)}")


def _shards(index: Path) -> list[Path]:
    listed = read_json(index, _RESTORE)
    names = listed.get("weight_map") if isinstance(listed, dict) else None
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise CorruptInputError(f"{index} lists no shards: it has no weight_map of file names", _RESTORE)
    shards = [index.parent / name for name in sorted({Path(name).name for name in names.values()})]
    for shard in shards:
        if not shard.is_file():
            raise CorruptInputError(f"{index.parent} has no {shard.name}, which {index.name} lists", _RESTORE)
    return shards


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, or of one of torch's, whose pickle may hold nothing but tensors."""
    return dict(tensors_in(path))


def tensors_in(path: Path) -> Iterator[tuple[str, Tensor]]:
    """As `read_weights`, one by one: those of safetensors are in memory as long as they are looked at."""
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as reader:
                yield from ((name, reader.get_tensor(name)) for name in reader.keys())  # noqa: SIM118
            return
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zipfile(path))
        loaded = loaded.get("state_dict", loaded)
        yield from ((name, tensor) for name, tensor in loaded.items() if isinstance(tensor, Tensor))
    except Exception as error:  # both readers raise types of their own, which have no common base
        if os.fsencode(path) != str(path).encode("utf-8", "replace"):
            raise UsageError(
                f"{path} has a name that is no UTF-8, which its reader cannot open", "rename it"
            ) from error
        said = next(iter(str(error).splitlines()), type(error).__name__)
        raise CorruptInputError(f"{path} is damaged: {said}", _RESTORE) from error


def check_finite(path: Path) -> None:
    """Raise CorruptInputError for a file of weights with a number that is NaN or infinite, UsageError for 8 bits.

    A file is looked at once while it stays as it is.
    """
    stat = path.stat()
    if (packed := _packed_tensor(path, (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns))) is not None:
        raise UsageError(
            f"{path}: tensor {packed} has 8 bits a number, without what its numbers are to be multiplied with",
            "give the model in float32, bfloat16 or float16 that it was made from: its weights are quantized here",
        )
    if (broken := _broken_tensor(path, (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns))) is not None:
        raise not_finite(path, broken)


@functools.cache
def _broken_tensor(path: Path, _: tuple[int, int, int]) -> str | None:
    return first_not_finite(tensors_in(path))


@functools.cache
def _packed_tensor(path: Path, _: tuple[int, int, int]) -> str | None:
    """The first tensor of float8, or of integers of a byte, with its type: `'a.weight' (float8_e4m3fn)`."""
    for name, tensor in tensors_in(path):
        if tensor.element_size() == 1 and tensor.dtype != torch.bool:
            return f"{name!r} ({str(tensor.dtype).removeprefix('torch.')})"
    return None


def not_finite(where: Path, tensor: str) -> CorruptInputError:
    return CorruptInputError(
        f"{where}: tensor {tensor!r} has numbers that are NaN or infinite",
        "restore it from where it came, or train it again with a lower learning rate",
    )


def first_not_finite(tensors: Iterable[tuple[str, Tensor]]) -> str | None:
    """The name of the first tensor with a number that is NaN or infinite."""
    return next((name for name, tensor in tensors if not _is_finite(tensor)), None)


def _is_finite(tensor: Tensor) -> bool:
    """By the largest and the smallest number, which are NaN where any is: ten times as fast as asking each of them."""
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    wide = tensor if tensor.element_size() > 1 else tensor.float()
    return bool(torch.isfinite(torch.stack(wide.aminmax())).all())
