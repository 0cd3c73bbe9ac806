"""Image data sets in memory: CIFAR-10, any tree of images, and the handwritten digits that scikit-learn ships."""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import torch
from torch import Tensor

from btard.protocol.hashing import digest, tensor_digest
from resnet.digits import read_digits, stratified
from resnet.image_folder import DataError, cache_folder, load_image_folder

__all__ = ["DATASETS", "DataError", "Dataset", "load_dataset"]

DATASETS = ("cifar10", "folder", "digits")

CIFAR_MEAN = (0.4914, 0.4822, 0.4465)
CIFAR_STD = (0.2023, 0.1994, 0.2010)
DIGITS_MEAN = (0.3054,)
DIGITS_STD = (0.3186,)
DIGITS_TEST_SIZE = 360
CIFAR_FOLDER = "cifar-10-batches-py"


@dataclass(frozen=True)
class Dataset:
    """Training and test images with their labels, on the CPU."""

    train_images: Tensor
    """[N, C, H, W] uint8"""
    train_labels: Tensor
    """[N] int64, in 0 .. classes - 1"""
    test_images: Tensor
    test_labels: Tensor
    mean: tuple[float, ...]
    """Per channel, of pixel values scaled to 0 .. 1; subtracted before training."""
    std: tuple[float, ...]
    label: str
    """The name of the data in results."""
    class_names: tuple[str, ...]
    mirror: bool
    """Whether a mirrored image is as good an example: true for photographs, not for digits."""

    @property
    def classes(self) -> int:
        """The number of classes."""
        return len(self.class_names)

    @property
    def channels(self) -> int:
        """The number of colour channels: 3 or 1."""
        return self.train_images.shape[1]

    @functools.cached_property
    def digest(self) -> str:
        """A digest, hex, of images, labels and normalisation: equal for equal data. Reads all of it."""
        tensors = (self.train_images, self.train_labels, self.test_images, self.test_labels)
        hashed = [tensor_digest(tensor, "data") for tensor in tensors]
        return digest("dataset", *hashed, repr((self.mean, self.std, self.class_names, self.mirror))).hex()

    def normalisation(self, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        """Return (shift, scale), [C, 1, 1] float32: the network's input is (pixel - shift) * scale."""
        shift = torch.tensor(self.mean, dtype=torch.float64)[:, None, None] * 255
        scale = 1 / (torch.tensor(self.std, dtype=torch.float64)[:, None, None] * 255)
        return shift.float().to(device), scale.float().to(device)

    def test_tensors(self, device: torch.device | str = "cpu", limit: int | None = None) -> tuple[Tensor, Tensor]:
        """Return the test images [N, C, H, W] float32, normalised, and their labels [N].

        `limit`: at most so many samples, evenly spaced, so that a test set sorted by class stays balanced.
        """
        count = len(self.test_images)
        index = torch.arange(count) if limit is None or limit >= count else torch.arange(limit) * count // limit
        shift, scale = self.normalisation(device)
        return (self.test_images[index].to(device).float() - shift) * scale, self.test_labels[index].to(device)


def load_dataset(
    name: str, path: str | Path | None = None, *, label: str | None = None, download: bool = True
) -> Dataset:
    """Return a data set, read into memory.

    `cifar10`: by torchvision. `path` is an existing folder that has it, or, with `download`, into which it is
    downloaded; without a path that is a folder of the user's cache. The files are verified.
    `folder`: a tree of images `train/<class>/*` and `test/<class>/*`, or a tar archive of one; see
    `resnet.image_folder`. Labels number the classes in alphabetical order.
    `digits`: 1,797 grey images of 8 x 8 pixels, enlarged to 16 x 16; 360 of them (always the same ones, stratified)
    are for testing.

    `label` names the data in results; by default "CIFAR-10", the file's name, or "digits". Raises DataError, a
    ValueError, if the name is unknown or the data is missing, damaged or of another form than expected.
    """
    place = None if path is None else _expanded(path)
    if name == "cifar10":
        return _cifar10(place, label or "CIFAR-10", download)
    if name == "digits":
        return _digits(label or "digits")
    if name == "folder":
        if place is None:
            raise DataError("data set folder: expected a path to a folder or a tar archive, got none; set data.path")
        return _folder(place, label or place.name)
    raise DataError(f"expected a data set of {', '.join(DATASETS)}, got {name!r}; set data.name")


def _cifar10(place: Path | None, label: str, download: bool) -> Dataset:
    from torchvision.datasets import CIFAR10

    if place is None:
        folder = cache_folder()
        if folder is None:
            raise DataError(
                "data set cifar10: expected a home folder to keep it in, this user has none; set data.path to a folder "
                "that has CIFAR-10, or to download it into"
            )
        place = folder / "cifar10"
        try:
            place.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(
                f"{place}: cannot be made to keep CIFAR-10 in ({error.strerror}); set data.path to a folder that has "
                "it, or to download it into"
            ) from None
    if not place.is_dir():
        raise DataError(
            f"{place}: expected a folder with CIFAR-10, or to download it into, found none; create it "
            "or correct data.path"
        )
    root = place.parent if place.name == CIFAR_FOLDER else place
    splits: list[Any] = []
    try:
        for train in (True, False):
            splits.append(CIFAR10(str(root), train=train, download=download))
    except (OSError, RuntimeError, URLError) as error:
        raise DataError(
            f"{root}: expected CIFAR-10, found none that is complete, and "
            f"{'the download failed' if download else 'this program downloads nothing'} ({_one_line(error)}); "
            f"put the verified {CIFAR_FOLDER} there or check the network"
        ) from error
    images = [torch.from_numpy(np.ascontiguousarray(split.data.transpose(0, 3, 1, 2))) for split in splits]
    labels = [torch.tensor(split.targets, dtype=torch.int64) for split in splits]
    names = tuple(splits[0].classes)
    return Dataset(images[0], labels[0], images[1], labels[1], CIFAR_MEAN, CIFAR_STD, label, names, mirror=True)


def _folder(place: Path, label: str) -> Dataset:
    train, train_labels, test, test_labels, names = load_image_folder(place)
    mean: tuple[float, ...] = CIFAR_MEAN
    std: tuple[float, ...] = CIFAR_STD
    if train.shape[1] == 1:
        pixels = train.astype(np.float64) / 255
        # A constant image set has no spread: leave it unscaled rather than divide by zero.
        mean, std = (float(pixels.mean()),), (float(pixels.std()) or 1.0,)
    images = [torch.from_numpy(array) for array in (train, test)]
    labels = [torch.from_numpy(array.astype(np.int64)) for array in (train_labels, test_labels)]
    return Dataset(images[0], labels[0], images[1], labels[1], mean, std, label, names, mirror=True)


def _digits(label: str) -> Dataset:
    pixels, labels = read_digits()
    images = torch.from_numpy(pixels * (255 / 16))[:, None]
    # The network halves the resolution three times; from 8 x 8 pixels its last stage would be left with one.
    larger = torch.nn.functional.interpolate(images, scale_factor=2, mode="bilinear").round().to(torch.uint8)
    train, test = map(torch.from_numpy, stratified(labels, DIGITS_TEST_SIZE))
    classes = torch.from_numpy(labels)
    names = tuple(str(digit) for digit in range(10))
    return Dataset(
        larger[train], classes[train], larger[test], classes[test], DIGITS_MEAN, DIGITS_STD, label, names, mirror=False
    )


def _expanded(path: str | Path) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise DataError(f"{path}: no home folder is known for the ~ in it; give the whole path") from None


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
