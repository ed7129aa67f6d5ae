"""The archive of a bundle: manifest.json and the files that compilers left, in one zip.

What is read comes from outside. Names are checked before anything is written, sizes and digests
while it is; nothing of it is imported or unpickled. Its kernels are machine code all the same.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from .bundle import BundleError, Manifest, Origin, from_json

MANIFEST = "manifest.json"
MAX_MANIFEST, MAX_FILES = 512 << 20, 16 << 30        # bytes unpacked: a small zip can hold much
# What compilers leave below a target's cache_dir, and which of it is a kernel of the device.
FOLDERS = ("kernels", "triton", "npubin", "examined")
BINARIES = ("kernels/*.so", "triton/*/*.cubin", "triton/*/*.hsaco", "npubin/*.o")
_GROUP = "__grp__"                   # Triton's list of what belongs to a kernel, by absolute paths
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*")
_PACKINGS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_BLOCK = 1 << 20


@dataclass(frozen=True)
class Bundle:
    """A bundle that was opened: its files are still in the archive."""

    path: Path
    origin: Origin

    @property
    def manifest(self) -> Manifest:
        """What it holds."""
        return self.origin.manifest


def write(path: Path, manifest: Manifest, folder: Path) -> Manifest:
    """Pack what compilers left in `folder`; `path` is replaced when the bundle is whole."""
    files = dict(_packable(folder))
    made = replace(manifest, files={
        name: hashlib.sha256(data()).hexdigest() for name, data in sorted(files.items())})
    part = path.with_name(f".{path.name}.part")      # one name: a killed plan leaves at most this
    try:
        with part.open("wb") as raw:
            with zipfile.ZipFile(raw, "w", zipfile.ZIP_DEFLATED) as archive:
                archive.writestr(MANIFEST, json.dumps(made.to_json()))
                for name in made.files:
                    archive.writestr(name, files[name]())
            raw.flush()
            os.fsync(raw.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return made


def _packable(folder: Path) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """Names in the archive, and what reads them. What a killed compiler left half is left out."""
    for pattern in ("kernels/*.so", "kernels/*.sha256", "examined/*.json", "npubin/*.json",
                    "npubin/*.o"):
        for path in folder.glob(pattern):
            yield path.relative_to(folder).as_posix(), path.read_bytes
    for whole in {p.parent for p in folder.glob(f"triton/*/{_GROUP}*.json")}:
        for path in (p for p in whole.iterdir() if p.is_file() and p.name != "lock"):
            group = partial(_group, path, str)
            yield (path.relative_to(folder).as_posix(),
                   group if path.name.startswith(_GROUP) else path.read_bytes)


def _group(path: Path, place: Callable[[str], str]) -> bytes:
    """Triton's list of a kernel's files with each one elsewhere."""
    children = json.loads(path.read_text())["child_paths"]
    if not isinstance(children, dict) or not all(map(_PART.fullmatch, children)):
        raise KeyError(f"{path.name} must map plain names")
    return json.dumps({"child_paths": {c: place(c) for c in children}}).encode()


def _below(folder: Path, child: str) -> str:
    return str(folder / child)


@contextmanager
def _told(path: Path) -> Iterator[None]:
    try:
        yield
    except (zipfile.BadZipFile, zlib.error, struct.error, EOFError, RuntimeError, KeyError,
            TypeError, UnicodeDecodeError, json.JSONDecodeError) as e:
        raise BundleError(f"{path} is damaged or no bundle ({e or type(e).__name__}); copy it "
                          "again, or plan it again") from e


def read(path: Path) -> Bundle:
    """Open a bundle: its manifest, and whether the archive holds just what that says."""
    if path.is_dir():
        raise BundleError(f"a bundle must be a file, but {path} is a directory")
    with _told(path), zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        if any(i.compress_type not in _PACKINGS for i in archive.infolist()):
            raise zipfile.BadZipFile("it is packed in a way that `expertile tune plan` never uses")
        if MANIFEST not in names:
            raise BundleError(f"{path} must be a bundle of `expertile tune plan`; it holds no "
                              f"{MANIFEST}")
        raw = _limited(archive, MANIFEST, MAX_MANIFEST)
    with _told(path):
        manifest = from_json(json.loads(raw), str(path))
    for name in manifest.files:
        parts = name.split("/")
        if parts[0] not in FOLDERS or not 2 <= len(parts) <= 3 or not all(
                map(_PART.fullmatch, parts)):
            raise BundleError(f"files of a bundle must stand in {', '.join(FOLDERS)} under plain "
                              f"names, but {path} has {name!r}: it was tampered with")
    if sorted(names) != sorted([MANIFEST, *manifest.files]):
        odd = sorted({*names} ^ {MANIFEST, *manifest.files})[:3] or "a file twice"
        raise BundleError(f"{path} must hold what its manifest lists, and differs in {odd}: it is "
                          "damaged or was tampered with")
    return Bundle(path, Origin(hashlib.sha256(raw).hexdigest(), manifest))


def _limited(archive: zipfile.ZipFile, name: str, most: int) -> bytes:
    with archive.open(name) as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise BundleError(f"{archive.filename} unpacks to more than {most >> 20} MiB of {name}")
    return data


def unpack(bundle: Bundle, below: Path) -> Path:
    """The bundle's files in a folder of their own below `below`, each with its digest.

    Made at once or not at all; one that is there already is used when nothing in it was changed.
    """
    place = below / bundle.origin.digest[:32]
    if place.is_dir() and not _is_whole(place, bundle.manifest):
        shutil.rmtree(place)
    if not place.is_dir():
        below.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(dir=below))
        try:
            _extract(bundle, fresh)
            if not place.is_dir():               # else another process was quicker
                fresh.rename(place)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
    for path in place.glob(f"triton/*/{_GROUP}*.json"):
        with _told(bundle.path):
            data = _group(path, partial(_below, path.parent))
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            file.write(data)
        Path(file.name).replace(path)
    return place


def _extract(bundle: Bundle, into: Path) -> None:
    left = MAX_FILES
    with _told(bundle.path), zipfile.ZipFile(bundle.path) as archive:
        for name, digest in bundle.manifest.files.items():
            path, seen = into / name, hashlib.sha256()
            path.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(name) as packed, path.open("wb") as file:
                while block := packed.read(_BLOCK):
                    if (left := left - len(block)) < 0:
                        raise BundleError(f"{bundle.path} unpacks to more than "
                                          f"{MAX_FILES >> 30} GiB")
                    seen.update(block)
                    file.write(block)
            if seen.hexdigest() != digest:
                raise BundleError(f"{name} in {bundle.path} is not what its manifest says: it is "
                                  "damaged or was tampered with; copy it again")


def _is_whole(place: Path, manifest: Manifest) -> bool:
    """Whether every file is as it was packed; Triton's lists hold this machine's paths."""
    try:
        return all(Path(name).name.startswith(_GROUP) or _digest(place / name) == digest
                   for name, digest in manifest.files.items())
    except OSError:
        return False


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def binaries(place: Path) -> frozenset[Path]:
    """The compiled kernels below a folder: those that a run adds were compiled there."""
    return frozenset(p for pattern in BINARIES for p in place.glob(pattern))
