"""What the page takes from npm: two packages, pinned and held against their hashes, kept in the cache folder.

The hashes are npm's own (`integrity` of a lockfile). A package is fetched once, from NPM_CONFIG_REGISTRY where that is
set; nothing of it runs on this machine, and what the page needs of it is copied into the site.
"""

from __future__ import annotations

import base64
import hashlib
import os
import tarfile
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

from mmcompress.drafts import written_whole
from mmcompress.errors import CorruptInputError, MissingRequirementError, UsageError
from mmcompress.places import cache_folder, writing
from mmcompress.progress import say

REGISTRY, DEFAULT_REGISTRY = "NPM_CONFIG_REGISTRY", "https://registry.npmjs.org"
TIMEOUT_S = 60.0
"""Without a byte."""


@dataclass(frozen=True)
class Package:
    """One release."""

    name: str
    version: str
    integrity: str
    """`sha512-` and the digest in base 64."""
    license: str
    copyright: str
    files: Mapping[str, str]
    """Path in the package -> path in the site."""

    @property
    def archive(self) -> str:
        return f"{self.name.split('/')[-1]}-{self.version}.tgz"


ONNXRUNTIME = Package(
    "onnxruntime-web",
    "1.30.0",
    "sha512-q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ==",
    "MIT",
    "Copyright (c) Microsoft Corporation",
    {
        "package/dist/ort.wasm.bundle.min.mjs": "vendor/onnxruntime.js",
        "package/dist/ort-wasm-simd-threaded.wasm": "vendor/onnxruntime.wasm",
    },
)
TOKENIZERS = Package(
    "@huggingface/tokenizers",
    "0.2.0",
    "sha512-LidMHe1FpcSYH4vcSjXooda34pC0M8m1gmDOv7SQi6Iv+ib1zX7J3sHBCC9/3FPCkn2k1b55FneVqMRxrr99pg==",
    "Apache-2.0",
    "Copyright Hugging Face",
    {"package/dist/tokenizers.min.mjs": "vendor/tokenizers.js", "package/LICENSE": "vendor/tokenizers-LICENSE.txt"},
)
PACKAGES = (ONNXRUNTIME, TOKENIZERS)


def vendored(package: Package) -> dict[str, bytes]:
    """The files of a package by their path in the site.

    Raises MissingRequirementError where no registry answers, CorruptInputError for other bytes than were pinned.
    """
    path = archive_of(package)
    found = {}
    with tarfile.open(path) as archive:
        for inside, place in package.files.items():
            stream = archive.extractfile(inside)
            assert stream is not None, inside
            found[place] = stream.read()
    return found


def archive_of(package: Package) -> Path:
    """The archive in the cache folder, verified; fetched where it is not there."""
    path = cache_folder() / "npm" / package.archive
    if path.is_file():
        _check(path.read_bytes(), package, str(path), f"delete {path}; it is fetched again")
        return path
    address = f"{os.environ.get(REGISTRY, DEFAULT_REGISTRY).rstrip('/')}/{package.name}/-/{package.archive}"
    say("npm", f"{package.name} {package.version}", f"from {address}, once")
    content = _fetched(address, path)
    _check(content, package, address, f"this version takes {package.version} as npm published it; set {REGISTRY}")
    with writing(path), written_whole(path) as stream:
        stream.write(content)
    return path


def _fetched(address: str, path: Path) -> bytes:
    if not address.startswith(("https://", "http://")):
        raise UsageError(f"{REGISTRY} is no address of a registry: {address}", f"set it to {DEFAULT_REGISTRY}")
    try:
        with urllib.request.urlopen(address, timeout=TIMEOUT_S) as answer:
            content: bytes = answer.read()
            return content
    except (urllib.error.URLError, HTTPException, OSError, ValueError) as error:
        raise MissingRequirementError(
            f"{address} cannot be fetched: {error}",
            f"put the file into {path.parent} by hand, or set {REGISTRY} to a registry that this machine reaches",
        ) from error


def _check(content: bytes, package: Package, where: str, hint: str) -> None:
    digest = f"sha512-{base64.b64encode(hashlib.sha512(content).digest()).decode()}"
    if digest != package.integrity:
        raise CorruptInputError(
            f"{where} is not {package.name} {package.version}: its hash is {digest[:19]}…, expected"
            f" {package.integrity[:19]}…",
            hint,
        )
