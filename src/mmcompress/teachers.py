"""Teachers by name, without torch: aliases, hub ids, `open_clip:…`, `file.py:function`, and where each one lies.

Of a hub repository only what transformers reads is fetched: configs, every family's tokenizer files, and one set of
weights, safetensors before pickles, shards before nothing. Its Python code is fetched only where it may run.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Sequence
from pathlib import Path

from mmcompress.checkpoints import is_own_checkpoint
from mmcompress.config import TeacherConfig
from mmcompress.errors import MissingRequirementError, UsageError, require, suggestion
from mmcompress.home import expanded
from mmcompress.packaged import packaged
from mmcompress.places import MANIFEST
from mmcompress.sidefiles import check_side_files

ALIASES = {
    "vit-b32": "openai/clip-vit-base-patch32",
    "vit-b16": "openai/clip-vit-base-patch16",
    "vit-l14": "openai/clip-vit-large-patch14",
    "vit-l14-336": "openai/clip-vit-large-patch14-336",
    "laion-vit-h14": "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
    "metaclip-b16": "facebook/metaclip-b16-fullcc2.5b",
    "metaclip-l14": "facebook/metaclip-l14-fullcc2.5b",
    "metaclip-h14": "facebook/metaclip-h14-fullcc2.5b",
    "siglip-b16": "google/siglip-base-patch16-224",
    "siglip2-b16": "google/siglip2-base-patch16-224",
    "siglip2-l16": "google/siglip2-large-patch16-256",
    "siglip2-so400m": "google/siglip2-so400m-patch14-384",
    "chinese-clip-b16": "OFA-Sys/chinese-clip-vit-base-patch16",
    "chinese-clip-l14": "OFA-Sys/chinese-clip-vit-large-patch14",
}


def hub_id(source: str) -> str | None:
    """The hub's name of a teacher, `openai/clip-vit-base-patch32`; None for one that has none, a local folder say."""
    name = ALIASES.get(source, source)
    if name.count("/") != 1 or ":" in name or source.startswith((".", "/", "~")) or Path(source).exists():
        return None
    return name


OPEN_CLIP = "open_clip:"
OPEN_CLIP_SCHEMES = ("hf-hub:", "local-dir:")
"""What open_clip finds a config of its own behind; any other name is an architecture that it knows."""
_PICKLES = (".pt", ".pth", ".bin")


def own_code(source: str) -> tuple[Path, str] | None:
    """`path/file.py:function` -> its two parts; None for any other teacher.

    Raises UsageError for a file without a function.
    """
    file, _, function = source.rpartition(":")
    if file.endswith(".py") and function:
        return expanded(file), function
    if source.endswith((".py", ".py:")) and not expanded(source).is_dir():
        name = source.removesuffix(":")
        raise UsageError(
            f"the teacher {source} is a Python file, and no function in it is named", f"name it: {name}:function"
        )
    return None


def open_clip_weights(name: str) -> Path | None:
    """The local file or folder behind `NAME/FILE` or `local-dir:FOLDER`; None for a tag or a hub id."""
    if name.startswith("local-dir:"):
        return expanded(name.removeprefix("local-dir:"))
    if name.startswith(OPEN_CLIP_SCHEMES):
        return None
    _, _, tag = name.partition("/")
    return expanded(tag) if tag.endswith((".safetensors", *_PICKLES)) or "/" in tag else None


def resolve(config: TeacherConfig, what: str = "teacher") -> Path:
    """The local folder of a Hugging Face teacher, downloaded into the hub's own cache if need be; `what` it is called
    in errors.

    Raises UsageError for what is no model folder, MissingRequirementError where the hub cannot be reached.
    """
    source = config.source
    if not source.strip():
        raise UsageError(f"the name of the {what} is empty", "give an alias, a hub id (owner/name), or a folder")
    if source.startswith("demo:"):
        return packaged(source)
    path = expanded(source)
    if path.exists():
        check_side_files(path)
        if not (path / "config.json").is_file():
            if what == "teacher" and is_own_checkpoint(path):
                return path
            if (path / MANIFEST).is_file():
                raise UsageError(
                    f"the {what} {source} is an artifact of mmcompress that has no config.json, so transformers has no "
                    "class for it",
                    "give a Hugging Face folder",
                )
            raise UsageError(f"the {what} {source} is no model: it has no config.json", "give a Hugging Face folder")
        return path
    if source.startswith((".", "/", "~")):
        raise UsageError(f"there is no {what} folder {source}", "give a folder in Hugging Face format")
    hub_id = ALIASES.get(source, source)
    if hub_id.count("/") != 1 or ":" in hub_id:
        raise UsageError(
            f"unknown {what} {source!r}",
            f"{suggestion(source, ALIASES)}; or a hub id (owner/name), a local folder, or file.py:function",
        )
    return _download(hub_id, source, config.trust_remote_code, what)


_HUB_FILES = ("*.json", "*.txt", "*.model", "*.tiktoken", "*.jinja")
"""Configs and the tokenizer files of every family: vocab.json, merges.txt, vocab.txt, spiece.model, …"""
_WEIGHT_SETS = (
    r"model\.safetensors",
    r"model-\d+-of-\d+\.safetensors",
    r"pytorch_model\.bin",
    r"pytorch_model-\d+-of-\d+\.bin",
)
"""What transformers takes for weights, in its order; an adapter's or another runtime's safetensors are none."""


def hub_patterns(names: Sequence[str], trust_remote_code: bool) -> list[str]:
    """Of the files of a hub repository, those that are fetched, as patterns of the hub."""
    weights = next((found for rule in _WEIGHT_SETS if (found := [n for n in names if re.fullmatch(rule, n)])), [])
    return [*_HUB_FILES, *weights, *(["*.py"] if trust_remote_code else [])]


def _download(hub_id: str, source: str, trust_remote_code: bool, what: str) -> Path:
    hub = require("huggingface_hub", "compress")
    refused = require("huggingface_hub.errors", "compress").HfHubHTTPError
    try:
        try:
            names = hub.list_repo_files(hub_id)
            return Path(hub.snapshot_download(hub_id, allow_patterns=hub_patterns(names, trust_remote_code)))
        except (OSError, refused):
            return Path(hub.snapshot_download(hub_id, local_files_only=True))
    except (OSError, ValueError, refused) as error:
        raise MissingRequirementError(
            f"the {what} {source!r} ({hub_id}) is not cached here, and the hub cannot be reached or has no such model",
            f"connect, or give a local folder: --{what} /path/to/{hub_id.split('/')[1]}",
        ) from error


def cached_folder(source: str) -> Path | None:
    """Where a teacher's repository lies in the hub's cache, in a folder that is called as its commit; None for none.

    Nothing is fetched. None too for what is no hub id.
    """
    name, file = hub_id(source), "config.json"
    if source.startswith(f"{OPEN_CLIP}hf-hub:"):
        name, file = source.removeprefix(f"{OPEN_CLIP}hf-hub:"), "open_clip_config.json"
    if name is None or importlib.util.find_spec("huggingface_hub") is None:
        return None
    import huggingface_hub

    try:
        found = huggingface_hub.try_to_load_from_cache(name, file)
    except ValueError:  # no name that a hub takes
        return None
    return Path(found).parent if isinstance(found, str) else None
