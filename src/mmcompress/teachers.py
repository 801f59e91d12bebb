"""Teachers by name, without torch: aliases, hub ids, and the folder that one of them lies in."""

from __future__ import annotations

from pathlib import Path

from mmcompress.config import TeacherConfig
from mmcompress.errors import MissingRequirementError, UsageError, require, suggestion
from mmcompress.packaged import packaged

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


_HUB_FILES = ["*.json", "*.safetensors", "*.txt", "*.model"]


def resolve(config: TeacherConfig) -> Path:
    """The local folder of a Hugging Face teacher, downloaded into the hub's own cache if need be.

    Raises UsageError for what is no model folder, MissingRequirementError where the hub cannot be reached.
    """
    source = config.source
    if source.startswith("demo:"):
        return packaged(source)
    path = Path(source)
    if path.exists():
        if not (path / "config.json").is_file():
            raise UsageError(f"the teacher {source} is no model: it has no config.json", "give a Hugging Face folder")
        return path
    if source.startswith((".", "/", "~")):
        raise UsageError(f"there is no teacher folder {source}", "give a folder in Hugging Face format")
    hub_id = ALIASES.get(source, source)
    if hub_id.count("/") != 1 or ":" in hub_id:
        raise UsageError(
            f"unknown teacher {source!r}",
            f"{suggestion(source, ALIASES)}; or a hub id (owner/name), a local folder, or file.py:function",
        )
    return _download(hub_id, source)


def _download(hub_id: str, source: str) -> Path:
    hub = require("huggingface_hub", "compress")
    patterns = _HUB_FILES
    try:
        try:
            names = hub.list_repo_files(hub_id)
            if not any(name.endswith(".safetensors") for name in names):
                patterns = [*_HUB_FILES, "pytorch_model.bin"]
            return Path(hub.snapshot_download(hub_id, allow_patterns=patterns))
        except (OSError, hub.errors.HfHubHTTPError):
            return Path(hub.snapshot_download(hub_id, allow_patterns=patterns, local_files_only=True))
    except (OSError, ValueError, hub.errors.HfHubHTTPError) as error:
        raise MissingRequirementError(
            f"the teacher {source!r} ({hub_id}) is not cached here, and the hub cannot be reached or has no such model",
            f"connect, or give a local folder: --teacher /path/to/{hub_id.split('/')[1]}",
        ) from error
