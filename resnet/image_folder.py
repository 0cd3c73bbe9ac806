"""A tree of images, or a tar archive of one, decoded once into arrays and cached.

The layout is `train/<class>/<file>` and `test/<class>/<file>`; all images have one size. An archive is read member by
member in memory and never unpacked to the disk. The cache is used only as long as no file was moved, renamed, replaced
or changed.
"""

import hashlib
import io
import json
import lzma
import os
import struct
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple
from zipfile import BadZipFile

import numpy as np
import PIL
from blake3 import blake3
from PIL import Image, UnidentifiedImageError, features

from btard.boundary import Mistake
from btard.files import complete_file
from btard.harness.progress import Bar, track
from resnet.pixels import LEAST_WHITE_16, WHITE_16, Pixels, UnclearPixels, pixels_of

SPLITS = ("train", "test")
LAYOUT = "train/<class>/<file> and test/<class>/<file>"
CACHE_VERSION = 2
PATIENCE = 2.0
"""Seconds after which a progress bar appears."""
MAX_IMAGE_BYTES = 64 * 2**20


class DataError(Mistake, ValueError):
    """The data is missing, damaged, or not in the expected form. The message is one line for the user."""


class ImageFolder(NamedTuple):
    """Decoded images [N, C, H, W] uint8 and labels [N] int64 of both splits, sorted by class and file name."""

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    class_names: tuple[str, ...]


class _Sample(NamedTuple):
    split: str
    class_name: str
    file_name: str
    pixels: np.ndarray
    grey: bool
    brightest: int | None


def load_image_folder(path: Path) -> ImageFolder:
    """Return the images of a folder or a tar archive (`.tar`, `.tar.gz`, ...).

    Images are decoded to RGB, or to one channel if all of them are grey (`resnet.pixels` says how). The arrays are kept
    as `<path>.cache.npz`, or in the user's cache folder where that cannot be written, and read from there as long as
    every file has the same place, size and times. Hidden files are ignored, and so is everything outside of the layout.

    Raises DataError if nothing is there, the archive or an image is damaged, an image has no faithful form in 8-bit
    RGB, a split or class is missing, or images differ in size.
    """
    if not path.exists():
        raise DataError(f"{path}: expected a folder or a tar archive of images, found nothing; correct data.path")
    path = path.resolve()
    key = _cache_key(path)
    for place in _cache_places(path):
        cached = _read_cache(place, key)
        if cached is not None:
            return cached
    samples = list(_samples_of_folder(path) if path.is_dir() else _samples_of_archive(path))
    result = _assemble(path, samples)
    for place in _cache_places(path):
        if _write_cache(place, key, result):
            break
    return result


def cache_folder() -> Path | None:
    """Return the folder for what can be computed or downloaded again: `btard` in the user's cache.

    None for a user without a home, as in some containers.
    """
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "btard"
    except RuntimeError:
        return None


def _position(name: str, where: str) -> tuple[str, str, str] | None:
    """Return (split, class, file) of a path inside the tree, or None if it is outside the layout or hidden."""
    pure = PurePosixPath(name)
    if pure.is_absolute() or ".." in pure.parts:
        raise DataError(f"{where}: expected relative paths inside the archive, got {name!r}; do not trust this archive")
    if len(pure.parts) != 3 or pure.parts[0] not in SPLITS or any(part.startswith(".") for part in pure.parts):
        return None
    return pure.parts[0], pure.parts[1], pure.parts[2]


def _files_of(folder: Path) -> list[tuple[Path, str, str, str]]:
    """Return (file, split, class, name) of every image file of a tree, sorted."""
    found = []
    for split in SPLITS:
        for file in (folder / split).glob("*/*"):
            position = _position(file.relative_to(folder).as_posix(), str(folder))
            if position is not None and file.is_file():
                found.append((file, *position))
    return sorted(found)


def _samples_of_folder(folder: Path) -> Iterator[_Sample]:
    files = track(_files_of(folder), f"decoding {folder.name}", unit="images", patience=PATIENCE)
    for file, split, class_name, name in files:
        if file.stat().st_size > MAX_IMAGE_BYTES:
            raise DataError(f"{file}: expected an image of at most {MAX_IMAGE_BYTES} bytes; remove it")
        yield _Sample(split, class_name, name, *_decode(file.read_bytes(), str(file)))


def _samples_of_archive(path: Path) -> Iterator[_Sample]:
    try:
        with (
            path.open("rb") as raw,
            Bar(f"decoding {path.name}", path.stat().st_size, unit="B", patience=PATIENCE) as bar,
            tarfile.open(fileobj=raw, mode="r:*") as archive,
        ):
            for member in archive:
                bar.move(raw.tell())
                position = _position(member.name, str(path))
                if position is None or member.isdir():
                    continue
                where = f"{path}: {member.name}"
                if not member.isreg():
                    raise DataError(f"{where}: expected an image file, got a link or device; put the image there")
                if member.size > MAX_IMAGE_BYTES:
                    raise DataError(f"{where}: expected at most {MAX_IMAGE_BYTES} bytes, got {member.size}; remove it")
                content = archive.extractfile(member)
                assert content is not None  # isreg() holds
                yield _Sample(*position, *_decode(content.read(), where))
            # To the very end, where gzip keeps its checksum.
            while archive.fileobj is not None and archive.fileobj.read(2**20):
                pass
    except (tarfile.TarError, EOFError, OSError, zlib.error, lzma.LZMAError) as error:
        raise DataError(f"{path}: expected a tar archive, got a damaged one or another file; fetch it again") from error


def _decode(content: bytes, where: str) -> Pixels:
    """Return the pixels of an encoded image; `where` names it in errors."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            return pixels_of(image)
    except UnclearPixels as error:
        raise DataError(f"{where}: expected {error}") from None
    except (
        UnidentifiedImageError,
        OSError,
        SyntaxError,
        ValueError,
        EOFError,
        struct.error,
        Image.DecompressionBombError,
    ) as error:
        reason = " ".join(str(error).split())
        # The buffer's address would make the message differ from run to run.
        reason = "not an image" if isinstance(error, UnidentifiedImageError) else reason
        raise DataError(
            f"{where}: expected a readable image, got {len(content)} bytes that are not ({reason}); remove it"
        ) from error


def _assemble(path: Path, samples: list[_Sample]) -> ImageFolder:
    samples = sorted(samples, key=lambda sample: sample[:3])
    names = {split: sorted({sample.class_name for sample in samples if sample.split == split}) for split in SPLITS}
    for split in SPLITS:
        if not names[split]:
            raise DataError(
                f"{path}: expected images as {LAYOUT}, got none in {split}/ (there is {_example(path)}); arrange the "
                "tree like this"
            )
    if names["train"] != names["test"]:
        only = {s: sorted(set(names[s]) - set(names[o])) for s, o in (SPLITS, SPLITS[::-1])}
        raise DataError(
            f"{path}: expected the same classes in train/ and test/, got only in train {only['train']}, only in test "
            f"{only['test']}; add or remove these folders"
        )
    if len(names["train"]) < 2:
        raise DataError(
            f"{path}: expected at least two classes, got only {names['train'][0]}; add a folder for another"
        )
    first = samples[0]
    for sample in samples:
        if sample.pixels.shape != first.pixels.shape:
            sizes = ["{1}x{0}".format(*s.pixels.shape) for s in (first, sample)]
            places = ["/".join(s[:3]) for s in (first, sample)]
            raise DataError(
                f"{path}: expected images of one size, got {sizes[0]} ({places[0]}) and {sizes[1]} ({places[1]}); "
                "resize them"
            )
    _check_brightness(path, samples)
    channels = 1 if all(sample.grey for sample in samples) else 3
    arrays: list[np.ndarray] = []
    for split in SPLITS:
        chosen = [sample for sample in samples if sample.split == split]
        pixels = np.stack([sample.pixels[..., :channels].transpose(2, 0, 1) for sample in chosen])
        arrays += [pixels, np.array([names[split].index(sample.class_name) for sample in chosen], dtype=np.int64)]
    return ImageFolder(arrays[0], arrays[1], arrays[2], arrays[3], tuple(names["train"]))


def _example(path: Path) -> str:
    """The place of some file in the folder or archive, for a message."""
    if path.is_dir():
        return next((file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()), "no file at all")
    with tarfile.open(path) as archive:
        return next((member.name for member in archive if member.isreg()), "no file at all")


def _check_brightness(path: Path, samples: list[_Sample]) -> None:
    """Raise DataError for 16-bit images of which 8 bits would keep next to nothing, such as 10-bit ones in 16 bits."""
    brightest = max((sample.brightest for sample in samples if sample.brightest is not None), default=WHITE_16)
    if brightest < LEAST_WHITE_16:
        raise DataError(
            f"{path}: expected 16-bit images that use their range up to {WHITE_16}, got none brighter than "
            f"{brightest}, which 8 bits would make {(brightest + 128) // 257} of 255; scale their values"
        )


def _cache_key(path: Path) -> str:
    """Text that changes with the decoder, and with each file's place, size, times and inode.

    The time of change is that of the file system: nobody sets it back, as `rsync -t` and `touch` do with the other.
    """
    files = [(path, "", "", "")] if path.is_file() else _files_of(path)
    listing = blake3()
    for file, *position in files:
        stat = file.stat()
        known = [*position, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
        listing.update(json.dumps(known).encode() + b"\n")
    decoder = f"Pillow {PIL.__version__}, JPEG {features.version('jpg')}"
    return f"v{CACHE_VERSION} {decoder}, {len(files)} files, {listing.hexdigest()}"


def _cache_places(path: Path) -> list[Path]:
    beside, folder = path.with_name(path.name + ".cache.npz"), cache_folder()
    name = f"{hashlib.sha256(os.fsencode(path)).hexdigest()[:32]}.npz"
    return [beside] if folder is None else [beside, folder / name]


def _read_cache(place: Path, key: str) -> ImageFolder | None:
    """Return what was cached for `key`, or None if there is nothing, something else, or a damaged file."""
    try:
        with np.load(place, allow_pickle=False) as cached:
            if str(cached["key"]) != key:
                return None
            arrays = [cached[name] for name in ImageFolder._fields]
    except (OSError, ValueError, KeyError, EOFError, zlib.error, BadZipFile):
        return None
    return ImageFolder(arrays[0], arrays[1], arrays[2], arrays[3], tuple(str(name) for name in arrays[4]))


def _write_cache(place: Path, key: str, result: ImageFolder) -> bool:
    """Write the cache so that a reader sees all of it or nothing; return whether that was possible."""
    arrays: dict[str, Any] = {name: np.asarray(value) for name, value in result._asdict().items()}
    try:
        with complete_file(place, shared=True) as temporary, temporary.open("wb") as file:
            np.savez(file, key=np.array(key), **arrays)
    except OSError:
        return False
    return True
