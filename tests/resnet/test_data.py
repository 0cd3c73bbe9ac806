"""Data sets: what is read, how it is cached, and that whatever is wrong with it is said in one line."""

import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from btard.harness.typed_yaml import ConfigError
from resnet import image_folder
from resnet.config import Config, DataConfig
from resnet.data import DataError, load_dataset
from resnet.training import check_batch

CLASSES = ("bird", "cat")


@pytest.fixture(autouse=True)
def _private_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user-cache"))


def picture(number: int, mode: str = "RGB", size: tuple[int, int] = (4, 3)) -> bytes:
    """A PNG of one colour that tells its number."""
    file = io.BytesIO()
    Image.new(mode, size, number if mode == "L" else (number, 2 * number, 0)).save(file, "PNG")
    return file.getvalue()


def tree(mode: str = "RGB") -> dict[str, bytes]:
    """Two training and one test image per class, not in order; the number of an image is unique."""
    files = {}
    for c, name in reversed(list(enumerate(CLASSES))):
        files[f"test/{name}/0.png"] = picture(10 * c + 9, mode)
        for k in (1, 0):
            files[f"train/{name}/{k}.png"] = picture(10 * c + k + 1, mode)
    return files


def write_archive(path: Path, files: dict[str, bytes], links: dict[str, str] | None = None) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        for name, target in (links or {}).items():
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.SYMTYPE, target
            archive.addfile(member)
    return path


def write_tree(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def assert_one_line(error: pytest.ExceptionInfo[DataError]) -> None:
    assert isinstance(error.value, ValueError) and "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["archive", "folder"])
def test_reads_a_tree_sorted_by_class_and_file(tmp_path: Path, kind: str) -> None:
    files = {**tree(), "README.txt": b"not an image", "train/bird/.hidden": b"nor this", "extra/x/0.png": b"nor this"}
    path = write_archive(tmp_path / "set.tar.gz", files) if kind == "archive" else write_tree(tmp_path / "set", files)
    data = load_dataset("folder", path)
    assert data.train_images.shape == (4, 3, 3, 4) and data.train_images.dtype == torch.uint8
    assert data.train_images[:, 0, 0, 0].tolist() == [1, 2, 11, 12]
    assert data.train_images[:, 1, 2, 3].tolist() == [2, 4, 22, 24]
    assert data.test_images[:, 0, 0, 0].tolist() == [9, 19]
    assert data.train_labels.tolist() == [0, 0, 1, 1] and data.train_labels.dtype == torch.int64
    assert data.test_labels.tolist() == [0, 1]
    assert data.class_names == CLASSES and data.classes == 2 and data.channels == 3
    assert data.label == path.name and load_dataset("folder", path, label="birds").label == "birds"
    assert data.mean == (0.4914, 0.4822, 0.4465) and data.std == (0.2023, 0.1994, 0.2010)


def test_grey_images_have_one_channel_and_their_own_spread(tmp_path: Path) -> None:
    data = load_dataset("folder", write_archive(tmp_path / "grey.tar", tree("L")))
    assert data.channels == 1
    pixels = data.train_images.double() / 255
    assert data.mean == pytest.approx((pixels.mean().item(),))
    assert data.std == pytest.approx((pixels.std(correction=0).item(),))
    mixed = {**tree("L"), "train/bird/0.png": picture(1)}
    assert load_dataset("folder", write_archive(tmp_path / "mixed.tar", mixed)).channels == 3


def test_second_reading_comes_from_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_archive(tmp_path / "set.tar.gz", tree())
    first = load_dataset("folder", path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["set.tar.gz", "set.tar.gz.cache.npz"]
    decode = image_folder._decode
    monkeypatch.setattr(image_folder, "_decode", lambda *_: pytest.fail("decoded again"))
    again = load_dataset("folder", path)
    assert torch.equal(first.train_images, again.train_images) and again.class_names == CLASSES
    assert torch.equal(first.test_labels, again.test_labels)

    # Another content under the same name is read anew, and so is a damaged cache.
    monkeypatch.setattr(image_folder, "_decode", decode)
    write_archive(path, {**tree(), "train/bird/0.png": picture(77)})
    os.utime(path, ns=(1, 1))
    assert load_dataset("folder", path).train_images[0, 0, 0, 0] == 77
    (tmp_path / "set.tar.gz.cache.npz").write_bytes(b"PK\x03\x04 damaged")
    assert load_dataset("folder", path).train_images[0, 0, 0, 0] == 77


def test_a_changed_file_in_a_folder_is_noticed(tmp_path: Path) -> None:
    folder = write_tree(tmp_path / "set", tree())
    load_dataset("folder", folder)
    write_tree(folder, {"test/cat/0.png": picture(50)})
    assert load_dataset("folder", folder).test_images[1, 0, 0, 0] == 50


def test_a_cache_that_cannot_be_beside_goes_to_the_users_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_archive(tmp_path / "set.tar.gz", tree())
    places = image_folder._cache_places(path)
    monkeypatch.setattr(image_folder, "_cache_places", lambda _: [path / "not-a-folder.npz", places[1]])
    load_dataset("folder", path)
    assert [file.suffix for file in (tmp_path / "user-cache" / "btard").iterdir()] == [".npz"]
    monkeypatch.setattr(image_folder, "_decode", lambda *_: pytest.fail("decoded again"))
    load_dataset("folder", path)


def test_a_cache_with_pickled_objects_is_not_loaded(tmp_path: Path) -> None:
    path = write_archive(tmp_path / "set.tar.gz", tree())
    np.savez(tmp_path / "set.tar.gz.cache.npz", key=np.array([print], dtype=object))
    assert load_dataset("folder", path).classes == 2


def test_a_batch_that_the_data_do_not_have_is_refused(tmp_path: Path) -> None:
    path = write_tree(tmp_path / "set", tree())
    config = Config(batch_size=5, data=DataConfig(name="folder", path=str(path)))
    with pytest.raises(ConfigError, match="batch_size must be at most 4, the training images of set, got 5; lower it"):
        check_batch(config, load_dataset("folder", path))


BAD_TREES = {
    r"none in train/ \(there is README\); arrange": {"README": b""},
    r"none in train/ \(there is set/t\S+.png\)": {f"set/{name}": content for name, content in tree().items()},
    "expected at least two classes, got only cat; add": {name: x for name, x in tree().items() if "/cat/" in name},
    r"none in test/ \(there is train/\S+\)": {
        name: content for name, content in tree().items() if name.startswith("train")
    },
    r"only in train \['dog'\], only in test \[\]": {**tree(), "train/dog/0.png": picture(1)},
    r"one size, got 4x3 \(test/bird/0.png\) and 5x5 \(train/cat/0.png\)": {
        **tree(),
        "train/cat/0.png": picture(1, size=(5, 5)),
    },
    "train/cat/0.png: expected a readable image, got 5 bytes": {**tree(), "train/cat/0.png": b"hello"},
    "test/cat/0.png: expected a readable image": {**tree(), "test/cat/0.png": picture(1)[:40]},
}


@pytest.mark.parametrize("kind", ["archive", "folder"])
@pytest.mark.parametrize("message", BAD_TREES)
def test_trees_that_are_not_as_expected(tmp_path: Path, message: str, kind: str) -> None:
    files = BAD_TREES[message]
    path = write_archive(tmp_path / "set.tgz", files) if kind == "archive" else write_tree(tmp_path / "set", files)
    with pytest.raises(DataError, match=message) as error:
        load_dataset("folder", path)
    assert_one_line(error)
    assert not list(tmp_path.glob("*.npz"))


@pytest.mark.parametrize("name", ["../train/bird/x.png", "/train/bird/x.png", "train/../../x.png"])
def test_archives_that_reach_outside_are_refused(tmp_path: Path, name: str) -> None:
    path = write_archive(tmp_path / "set.tar.gz", {**tree(), name: picture(1)})
    with pytest.raises(DataError, match="expected relative paths") as error:
        load_dataset("folder", path)
    assert_one_line(error)


def test_archives_with_links_are_refused(tmp_path: Path) -> None:
    path = write_archive(tmp_path / "set.tar.gz", tree(), links={"train/cat/link.png": "/etc/passwd"})
    with pytest.raises(DataError, match=r"train/cat/link\.png: expected an image file, got a link"):
        load_dataset("folder", path)


@pytest.mark.parametrize("damage", ["cut", "noise", "empty", "flipped", "checksum"])
def test_damaged_archives(tmp_path: Path, damage: str) -> None:
    path = write_archive(tmp_path / "set.tar.gz", tree())
    content = bytearray(path.read_bytes())
    if damage == "cut":
        content = content[: len(content) // 2]
    elif damage == "noise":
        content = bytearray(range(256)) * 10
    elif damage == "empty":
        content = bytearray()
    elif damage == "flipped":
        content[len(content) // 2] ^= 0xFF
    else:
        content[-8] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"set\.tar\.gz") as error:
        load_dataset("folder", path)
    assert_one_line(error)


def test_an_image_that_is_too_large_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_folder, "MAX_IMAGE_BYTES", 10)
    for path in (write_archive(tmp_path / "set.tar", tree()), write_tree(tmp_path / "set", tree())):
        with pytest.raises(DataError, match="at most 10 bytes"):
            load_dataset("folder", path)


def test_digits() -> None:
    data = load_dataset("digits")
    again = load_dataset("digits")
    assert data.train_images.shape == (1437, 1, 16, 16) and data.test_images.shape == (360, 1, 16, 16)
    assert torch.equal(data.train_images, again.train_images)
    assert data.classes == 10 and data.label == "digits" and not data.mirror
    assert data.test_labels.bincount().min() >= 34 and data.test_labels.bincount().max() <= 38
    pixels = data.train_images.double() / 255
    assert data.mean == pytest.approx((pixels.mean().item(),), abs=5e-4)
    assert data.std == pytest.approx((pixels.std().item(),), abs=5e-4)


def test_digits_are_those_that_scikit_learn_reads_and_divides() -> None:
    """The digest was taken of what its `load_digits` and `train_test_split` return, of version 1.9."""
    assert load_dataset("digits").digest == "14632c8242d0b3af404afe8ba1c1e74513095a127fa90e50dbb1af9a47ea5cb8"


def test_test_tensors_are_normalised_and_a_limit_stays_balanced(tmp_path: Path) -> None:
    data = load_dataset("folder", write_archive(tmp_path / "set.tar.gz", tree()))
    images, labels = data.test_tensors()
    assert images[1, 1, 0, 0].item() == pytest.approx((38 / 255 - 0.4822) / 0.1994)
    assert labels.tolist() == [0, 1]
    digits = load_dataset("digits")
    assert len(digits.test_tensors(limit=1000)[0]) == 360
    images, labels = digits.test_tensors(limit=40)
    assert images.shape == (40, 1, 16, 16) and torch.equal(labels, digits.test_labels[::9])


class _Cifar10:
    """Stands for torchvision's class: as it behaves with two images, or without a network."""

    classes = ("airplane", "automobile")

    def __init__(self, root: str, train: bool, download: bool) -> None:
        assert download
        if (Path(root) / "offline").exists():
            raise RuntimeError("Dataset not found\nor corrupted.")
        self.data = np.arange(2 * 32 * 32 * 3, dtype=np.uint8).reshape(2, 32, 32, 3) + (0 if train else 1)
        self.targets = [1, 0] if train else [0, 1]


def test_cifar10_through_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchvision.datasets.CIFAR10", _Cifar10)
    for path in (None, tmp_path, tmp_path / "cifar-10-batches-py"):
        if path is not None:
            path.mkdir(exist_ok=True)
        data = load_dataset("cifar10", path)
        assert data.train_images.shape == (2, 3, 32, 32) and data.train_images.is_contiguous()
        assert data.train_images[0, :, 0, 1].tolist() == [3, 4, 5]
        assert data.test_images[0, :, 0, 1].tolist() == [4, 5, 6]
        assert data.train_labels.tolist() == [1, 0] and data.test_labels.tolist() == [0, 1]
        assert data.label == "CIFAR-10" and data.mirror
    (tmp_path / "offline").touch()
    with pytest.raises(DataError, match="Dataset not found or corrupted") as error:
        load_dataset("cifar10", tmp_path)
    assert_one_line(error)


@pytest.mark.parametrize(
    ("name", "path", "message"),
    [
        ("imagenet", None, "expected a data set of cifar10, folder, digits, got 'imagenet'"),
        ("folder", None, "expected a path to a folder or a tar archive, got none"),
        ("folder", "missing/set.tar.gz", "found nothing"),
        ("cifar10", "missing", "found none; create it or correct data.path"),
    ],
)
def test_missing_data(tmp_path: Path, name: str, path: str | None, message: str) -> None:
    with pytest.raises(DataError, match=message) as error:
        load_dataset(name, None if path is None else tmp_path / path)
    assert_one_line(error)


def encoded(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def grey16(value: int) -> Image.Image:
    return Image.fromarray(np.full((3, 4), value, np.uint16))


def floats(value: float) -> Image.Image:
    return Image.fromarray(np.full((3, 4), value, np.float32))


def with_palette(index: int, transparent: int | None = None) -> bytes:
    image = Image.new("P", (4, 3), index)
    image.putpalette([0, 0, 0, 10, 20, 30, 40, 50, 60])
    return encoded(image, **({} if transparent is None else {"transparency": transparent}))


RIGHT = {
    "16 bits": (encoded(grey16(40_000)), (156, 156, 156)),  # 40,000 / 257 = 155.6
    "16 bits, white": (encoded(grey16(65_535)), (255, 255, 255)),
    "16 bits, TIFF": (encoded(grey16(20_000), "TIFF"), (78, 78, 78)),
    "32-bit integers of 16 bits": (encoded(Image.new("I", (4, 3), 40_000), "TIFF"), (156, 156, 156)),
    "floats": (encoded(floats(0.25), "TIFF"), (64, 64, 64)),
    "black and white": (encoded(Image.new("1", (4, 3), 1)), (255, 255, 255)),
    "palette": (with_palette(2), (40, 50, 60)),
    "palette with a transparent colour that is not used": (with_palette(2, transparent=1), (40, 50, 60)),
    "CMYK": (encoded(Image.new("CMYK", (4, 3), (255, 0, 51, 0)), "TIFF"), (0, 255, 204)),
    "opaque alpha": (encoded(Image.new("RGBA", (4, 3), (1, 2, 3, 255))), (1, 2, 3)),
    "grey with opaque alpha": (encoded(Image.new("LA", (4, 3), (7, 255))), (7, 7, 7)),
}


@pytest.mark.parametrize("kind", RIGHT)
def test_every_kind_of_image_has_the_right_values(tmp_path: Path, kind: str) -> None:
    content, colour = RIGHT[kind]
    data = load_dataset("folder", write_tree(tmp_path / "set", {**tree(), "train/cat/0.png": content}))
    assert data.train_images[2, :, 0, 0].tolist() == list(colour)


def test_images_of_16_bits_are_grey(tmp_path: Path) -> None:
    files = {name: encoded(grey16(1_000 * k)) for k, name in enumerate(tree(), 1)}
    data = load_dataset("folder", write_tree(tmp_path / "set", files))
    assert data.channels == 1 and data.train_images.unique().tolist() == [8, 12, 19, 23]
    assert data.std[0] > 0


TWO_PICTURES = io.BytesIO()
Image.new("L", (4, 3)).save(TWO_PICTURES, "TIFF", save_all=True, append_images=[Image.new("L", (4, 3), 9)])

UNCLEAR = {
    "transparent": (encoded(Image.new("RGBA", (4, 3), (1, 2, 3, 254))), "transparent ones"),
    "a transparent colour": (with_palette(1, transparent=1), "transparent ones"),
    "floats to 255": (encoded(floats(200.0), "TIFF"), "float pixels in 0 .. 1, got values from 200 to 200"),
    "NaN": (encoded(floats(float("nan")), "TIFF"), "not finite"),
    "32 bits": (encoded(Image.new("I", (4, 3), 70_000), "TIFF"), "at most 16 bits, got values from 70000 to 70000"),
    "a mode without RGB": (encoded(Image.new("LAB", (4, 3)), "TIFF"), "mode LAB"),
    "several pictures": (TWO_PICTURES.getvalue(), "one picture, got 2"),
    "10 bits in 16": (encoded(grey16(1_023)), "got none brighter than 1023, which 8 bits would make 4 of 255"),
}


@pytest.mark.parametrize("kind", UNCLEAR)
def test_an_image_whose_values_would_change_is_refused(tmp_path: Path, kind: str) -> None:
    content, message = UNCLEAR[kind]
    with pytest.raises(DataError, match=message) as error:
        load_dataset("folder", write_tree(tmp_path / "set", {**tree(), "train/cat/0.png": content}))
    assert_one_line(error)
    assert str(tmp_path) in str(error.value)


def move(source: str, target: str) -> Callable[[Path], object]:
    def act(folder: Path) -> None:
        (folder / target).parent.mkdir(parents=True, exist_ok=True)
        (folder / source).rename(folder / target)

    return act


def rename_class(folder: Path) -> None:
    for split in ("train", "test"):
        (folder / split / "bird").rename(folder / split / "zebra")


def replace_unseen(folder: Path) -> None:
    """Other content of the same size, with the time of modification that there was."""
    file = folder / "train/bird/1.png"
    before = file.stat()
    content = picture(3)
    assert len(content) == before.st_size
    file.write_bytes(content)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


CHANGES: dict[str, tuple[Callable[[Path], object], list[int], list[int]]] = {
    "between classes": (move("train/bird/0.png", "train/cat/z.png"), [2, 11, 12, 1], [0, 1, 1, 1]),
    "between splits": (move("test/bird/0.png", "train/bird/z.png"), [1, 2, 9, 11, 12], [0, 0, 0, 1, 1]),
    "a class renamed": (rename_class, [11, 12, 1, 2], [0, 0, 1, 1]),
    "swapped names": (
        lambda folder: [move(*pair)(folder) for pair in SWAP],
        [2, 1, 11, 12],
        [0, 0, 1, 1],
    ),
    "replaced, same size and time": (replace_unseen, [1, 3, 11, 12], [0, 0, 1, 1]),
}
SWAP = (("train/bird/0.png", "tmp.png"), ("train/bird/1.png", "train/bird/0.png"), ("tmp.png", "train/bird/1.png"))


@pytest.mark.parametrize("change", CHANGES)
def test_the_cache_sees_whatever_changed(tmp_path: Path, change: str) -> None:
    act, colours, labels = CHANGES[change]
    folder = write_tree(tmp_path / "set", tree())
    extra = {"test/bird/1.png": picture(60)} if change == "between splits" else {}
    write_tree(folder, extra)
    before = load_dataset("folder", folder).digest
    act(folder)
    data = load_dataset("folder", folder)
    assert data.train_images[:, 0, 0, 0].tolist() == colours and data.train_labels.tolist() == labels
    assert data.digest != before


def test_a_link_that_leads_to_another_image_is_noticed(tmp_path: Path) -> None:
    folder = write_tree(tmp_path / "set", tree())
    for number in (1, 2):
        (tmp_path / f"{number}.png").write_bytes(picture(100 + number))
        os.utime(tmp_path / f"{number}.png", ns=(1, 1))
    link = folder / "train/bird/0.png"
    for number in (1, 2):
        link.unlink()
        link.symlink_to(tmp_path / f"{number}.png")
        assert load_dataset("folder", folder).train_images[0, 0, 0, 0] == 100 + number


def test_a_user_without_a_home_has_no_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", lambda uid: {}[uid])
    assert image_folder.cache_folder() is None
    assert load_dataset("folder", write_tree(tmp_path / "set", tree())).classes == 2
    with pytest.raises(DataError, match=r"this user has none; set data\.path"):
        load_dataset("cifar10")
    with pytest.raises(DataError, match="no home folder is known"):
        load_dataset("folder", "~/set")


def test_the_digest_is_that_of_images_and_labels_alone(tmp_path: Path) -> None:
    first = load_dataset("folder", write_tree(tmp_path / "one", tree()))
    packed = load_dataset("folder", write_archive(tmp_path / "two.tar", tree()), label="birds")
    assert first.digest == packed.digest and len(first.digest) == 64
