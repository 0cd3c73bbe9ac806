"""Batches are functions of their seeds, and their augmentation is what it is said to be."""

import hashlib
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from resnet.data import Dataset
from resnet.sampling import TrainingData, draw_batches, generator_from_seed


def seed(number: int) -> bytes:
    return hashlib.sha256(number.to_bytes(4, "big")).digest()


def make_dataset(count: int = 200, channels: int = 3, size: int = 32, mirror: bool = True) -> Dataset:
    """Random pixels over 1, so that black is padding; the first pixel row of sample i tells i."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(1, 256, (count, channels, size, size), generator=generator, dtype=torch.uint8)
    labels = torch.arange(count) % 10
    names = tuple("abcdefghij")
    return Dataset(images, labels, images[:5], labels[:5], (0.5,) * channels, (0.25,) * channels, "x", names, mirror)


def unmoved(dataset: Dataset) -> TrainingData:
    """The data of which a crop is the whole image: the same seeds draw the same samples."""
    data = TrainingData(replace(dataset, mirror=False))
    data.images, data.padding = dataset.train_images, 0
    return data


def pixels(dataset: Dataset, images: torch.Tensor) -> torch.Tensor:
    """Undo the normalisation by its definition."""
    return ((images * 0.25 + 0.5) * 255).round()


def test_a_batch_depends_on_its_seed_alone() -> None:
    data = TrainingData(make_dataset())
    seeds = [seed(number) for number in range(5)]
    images, labels = draw_batches(data, seeds, 8)
    assert images.shape == (5, 8, 3, 32, 32) and images.dtype == torch.float32
    assert labels.shape == (5, 8) and labels.dtype == torch.int64
    for order in ([3], [4, 0], [0, 0]):
        some = draw_batches(data, [seeds[index] for index in order], 8)
        assert torch.equal(some[0], images[order]) and torch.equal(some[1], labels[order])
    assert len({tuple(row.tolist()) for row in labels}) == 5


def test_every_byte_of_the_seed_counts() -> None:
    base = bytes(32)
    draws = {tuple(generator_from_seed(base).integers(0, 2**62, 4))}
    for position in range(32):
        changed = bytearray(base)
        changed[position] ^= 1
        draws.add(tuple(generator_from_seed(bytes(changed)).integers(0, 2**62, 4)))
    assert len(draws) == 33


def test_draws_are_the_same_on_every_machine() -> None:
    generator = generator_from_seed(seed(1))
    assert generator.choice(50_000, 8, replace=False).tolist() == [43939, 33113, 36594, 42373, 42473, 3077, 35452, 4431]
    assert generator.integers(0, 9, (2, 8)).tolist() == [[8, 1, 6, 0, 1, 1, 7, 5], [7, 2, 0, 0, 4, 0, 0, 1]]


def test_without_augmentation_samples_are_whole_distinct_and_labelled() -> None:
    dataset = make_dataset()
    images, labels = draw_batches(unmoved(dataset), [seed(number) for number in range(6)], 64)
    for batch, target in zip(pixels(dataset, images), labels, strict=True):
        match = (batch[:, None] == dataset.train_images[None].float()).flatten(2).all(2)  # [B, N]
        assert (match.sum(1) == 1).all() and (match.sum(0) <= 1).all()
        assert torch.equal(dataset.train_labels[match.int().argmax(1)], target)


def test_a_batch_of_everything_holds_every_sample_once() -> None:
    dataset = make_dataset(count=20)
    labels = draw_batches(TrainingData(dataset), [seed(0)], 20)[1]
    assert torch.equal(labels[0].sort().values, dataset.train_labels.sort().values)


@pytest.mark.parametrize(("size", "padding"), [(32, 4), (16, 2), (8, 1)])
def test_augmented_samples_are_crops_and_mirrored_crops(size: int, padding: int) -> None:
    dataset = make_dataset(count=40, size=size)
    data = TrainingData(dataset)
    seeds = [seed(number) for number in range(40)]
    images = pixels(dataset, draw_batches(data, seeds, 8)[0]).flatten(0, 1)
    plain = pixels(dataset, draw_batches(unmoved(dataset), seeds, 8)[0]).flatten(0, 1)
    padded = F.pad(plain, (padding,) * 4)
    seen = set()
    for sample, source in zip(images, padded, strict=True):
        found = [
            (top, left, mirrored)
            for top in range(2 * padding + 1)
            for left in range(2 * padding + 1)
            for mirrored in (False, True)
            if torch.equal(sample.flip(-1) if mirrored else sample, source[:, top : top + size, left : left + size])
        ]
        assert len(found) == 1
        seen.add(found[0])
    offsets = range(2 * padding + 1)
    assert {top for top, _, _ in seen} == {left for _, left, _ in seen} == set(offsets)
    mirrored = sum(mirrored for _, _, mirrored in seen)
    assert 0.2 < mirrored / len(seen) < 0.8


def test_data_that_must_not_be_mirrored_is_not() -> None:
    dataset = make_dataset(count=30, channels=1, size=8, mirror=False)
    free = make_dataset(count=30, channels=1, size=8, mirror=True)
    seeds = [seed(number) for number in range(10)]
    images, free_images = (draw_batches(TrainingData(d), seeds, 8)[0].flatten(0, 1) for d in (dataset, free))
    same = (images == free_images).flatten(1).all(1)
    flipped = (images == free_images.flip(-1)).flatten(1).all(1)
    assert (same | flipped).all() and 20 < same.sum() < 60


def test_flipped_labels() -> None:
    data = TrainingData(make_dataset())
    seeds = [seed(1), seed(2)]
    images, labels = draw_batches(data, seeds, 8)
    attacked, flipped = draw_batches(data, seeds, 8, flip_labels=[False, True])
    assert torch.equal(images, attacked)
    assert torch.equal(flipped, torch.stack([labels[0], 9 - labels[1]]))


def test_requests_that_cannot_be_met() -> None:
    data = TrainingData(make_dataset(count=10))
    with pytest.raises(ValueError, match="a public seed has 32 bytes, got 4"):
        draw_batches(data, [b"seed"], 2)
    with pytest.raises(ValueError, match="batch_size must be between 1 and the 10 training samples, got 11"):
        draw_batches(data, [seed(0)], 11)
    with pytest.raises(ValueError, match="got 1 seeds, 2 flags"):
        draw_batches(data, [seed(0)], 2, flip_labels=[True, False])
    with pytest.raises(ValueError, match="got 0 seeds, 0 flags"):
        draw_batches(data, [], 2)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda_draws_the_same_samples() -> None:
    dataset = make_dataset()
    images, labels = draw_batches(TrainingData(dataset), [seed(0)], 8)
    on_device, their_labels = draw_batches(TrainingData(dataset, "cuda"), [seed(0)], 8)
    torch.testing.assert_close(on_device.cpu(), images)
    assert torch.equal(their_labels.cpu(), labels)
