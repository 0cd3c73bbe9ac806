"""Batches from public seeds: a seed determines the samples, crops and flips, so anybody can recompute a gradient."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from btard.protocol.effects import Compute
from resnet.data import Dataset

SEED_BYTES = 32
PADDING_SHARE = 8
"""A crop moves by up to 1/8 of the image's side: 4 pixels for 32x32, the usual augmentation of CIFAR-10."""


class TrainingData:
    """The training images and labels of a data set on a device, prepared for drawing batches."""

    def __init__(self, dataset: Dataset, device: torch.device | str = "cpu") -> None:
        self.source = dataset
        self.height, self.width = dataset.train_images.shape[2:]
        self.padding = max(self.height, self.width) // PADDING_SHARE
        # Padded once, with black as torchvision's RandomCrop does; a crop is then a choice of rows and columns.
        self.images = F.pad(dataset.train_images.to(device), (self.padding,) * 4)
        self.labels = dataset.train_labels.to(device)
        self.shift, self.scale = dataset.normalisation(device)
        self.classes = dataset.classes
        self.mirror = dataset.mirror

    def __len__(self) -> int:
        return len(self.labels)


def draw_batches(
    data: TrainingData,
    seeds: Sequence[bytes],
    batch_size: int,
    *,
    flip_labels: Sequence[bool] | None = None,
) -> tuple[Tensor, Tensor]:
    """Return images [P, B, C, H, W] float32, normalised, and labels [P, B] int64 on the data's device, for P seeds.

    A batch is a function of its 32-byte seed alone, the same on every device: B distinct samples, for each a random
    crop out of the padded image and (unless the data forbids it) a horizontal flip with probability 1/2. Where
    `flip_labels` is true, label l becomes classes - 1 - l (the label-flipping attack).

    Raises ValueError for a seed of another length, a batch size that the data does not allow, no seeds, or unequal
    numbers of seeds and flags.
    """
    flags = [False] * len(seeds) if flip_labels is None else list(flip_labels)
    if not seeds or len(flags) != len(seeds):
        raise ValueError(f"expected a label flag per seed and at least one, got {len(seeds)} seeds, {len(flags)} flags")
    if not 1 <= batch_size <= len(data):
        raise ValueError(f"batch_size must be between 1 and the {len(data)} training samples, got {batch_size}")
    device = data.labels.device
    choices = np.stack([_choose(data, seed, batch_size) for seed in seeds], axis=1)
    index, top, left, mirrored = torch.from_numpy(choices).to(device)
    images = _gather(data, index, top, left, mirrored)
    labels = data.labels[index]
    flipped = torch.tensor(flags, device=device)[:, None]
    return images, torch.where(flipped, data.classes - 1 - labels, labels)


def requested_batches(data: TrainingData, requests: Sequence[Compute], batch_size: int) -> tuple[Tensor, Tensor]:
    """The batches of `requests`, as `draw_batches` returns them."""
    flags = [request.flip_labels for request in requests]
    return draw_batches(data, [request.seed for request in requests], batch_size, flip_labels=flags)


def _choose(data: TrainingData, seed: bytes, batch_size: int) -> np.ndarray:
    """Return [4, B] int64: samples, first rows, first columns, and 1 for each to be mirrored."""
    generator = generator_from_seed(seed)
    index = generator.choice(len(data), batch_size, replace=False)
    offsets = generator.integers(0, 2 * data.padding + 1, (2, batch_size))
    mirrored = generator.integers(0, 2, batch_size) * data.mirror
    return np.stack([index, *offsets, mirrored]).astype(np.int64)


def _gather(data: TrainingData, index: Tensor, top: Tensor, left: Tensor, mirrored: Tensor) -> Tensor:
    """Return the normalised crops for choices of shape [P, B]."""
    device = index.device
    columns = torch.arange(data.width, device=device)
    columns = torch.where(mirrored[..., None] > 0, columns.flip(0), columns) + left[..., None]  # [P, B, W]
    rows = torch.arange(data.height, device=device) + top[..., None]  # [P, B, H]
    channels = torch.arange(data.images.shape[1], device=device)
    crops = data.images[
        index[..., None, None, None], channels[:, None, None], rows[..., None, :, None], columns[..., None, None, :]
    ]
    return (crops.float() - data.shift) * data.scale


def generator_from_seed(seed: bytes) -> np.random.Generator:
    """Return a random generator that is a function of all 32 bytes of `seed` (Philox: counter-based).

    Philox has a key of 128 bits; the other half of the seed says where its counter starts. Raises ValueError for
    another length.
    """
    if len(seed) != SEED_BYTES:
        raise ValueError(f"a public seed has {SEED_BYTES} bytes, got {len(seed)}")
    words = np.frombuffer(seed, dtype="<u8").astype(np.uint64)
    # The counter's low words count the blocks: from zero, the streams of two seeds do not run into each other.
    counter = np.array([0, 0, words[2], words[3]], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=words[:2], counter=counter))
