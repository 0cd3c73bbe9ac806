"""Where the text comes from: WikiText from the hub, a folder of text files, or generated text."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from blake3 import blake3

from albert.data.errors import DataError
from albert.data.options import SYNTHETIC
from albert.data.synthetic import ARTICLES, synthetic_lines
from albert.data.text import SHOWN, Article, Layout, articles, detect_layout
from albert.data.tokenizer import one_line
from btard.harness.progress import track

SPLITS = ("train", "validation")
HUB_DATASET = "Salesforce/wikitext"
HUB_CONFIGS = {"wikitext-103": "wikitext-103-raw-v1", "wikitext-2": "wikitext-2-raw-v1"}
SUFFIXES = (".txt", ".tokens", ".raw")
WORDS = {"train": "train", "valid": "validation", "test": "test"}
"""The words in a file's name that say which split it holds; test text is not used."""

LOOKED_AT = 200_000
"""Number of lines of each train file that are read to detect what separates documents."""

HELD_OUT = 20
"""Without a validation file, one in this many articles of the train text is for validation, from the first on."""


@dataclass(frozen=True)
class Source:
    """Text in two splits, not read yet."""

    description: dict[str, Any]
    """What distinguishes it from any other text, for `data.json`."""
    texts: Callable[[str], Iterable[Iterable[str]]]
    """The texts of a split, each as its lines in the layout of WikiText; an article ends with its text"""
    has_validation: bool = True
    layout: Layout = "headings"
    """What separates documents."""

    def read(self, *, progress: bool = True) -> dict[str, list[Article]]:
        """Return the articles of both splits, in memory: about twice the size of the text.

        Raises DataError if the hub or a file cannot be read, or if a split has no article.
        """
        found = {split: self._read(split, progress) for split in SPLITS if split == "train" or self.has_validation}
        if not self.has_validation:
            if len(found["train"]) < 2:
                raise DataError(
                    f"{self.description['name']}: expected a file named *valid* or at least two documents to hold one "
                    f"out, found one, as a document is {SHOWN[self.layout]}; --documents says what it is"
                )
            found["validation"] = found["train"][::HELD_OUT]
            del found["train"][::HELD_OUT]
        return found

    def _read(self, split: str, progress: bool) -> list[Article]:
        found: list[Article] = []
        for lines in self.texts(split):
            found += articles(track(lines, f"read {split}", unit="lines", show=progress), self.layout)
        if not found:
            raise DataError(
                f"{self.description['name']}: expected articles for {split}, found no text; see that the right files "
                "are there"
            )
        return found


def open_source(name: str, seed: int = 0, layout: Layout | None = None) -> Source:
    """Return the source of this name: `wikitext-103`, `wikitext-2`, `synthetic` or the path of a folder.

    In a folder, files `*train*`, `*valid*` and `*test*` with ending .txt, .tokens or .raw are text in UTF-8; `layout`
    is what separates their documents, by default what the train files look like. `seed` is that of invented text.
    Raises DataError if the folder is none or has no train file, or for a layout of text that is not from a folder.
    """
    if layout not in (None, "headings") and name in (*HUB_CONFIGS, SYNTHETIC):
        raise DataError(f"--documents {layout}: {name} has headings; leave it out")
    if name == SYNTHETIC:
        return Source({"name": name, "articles": ARTICLES}, lambda split: [synthetic_lines(seed, split)])
    if name in HUB_CONFIGS:
        return _hub(name)
    folder = Path(name).expanduser()
    if not folder.is_dir():
        raise DataError(
            f"--source {name}: expected {', '.join((*HUB_CONFIGS, SYNTHETIC))} or a folder of text files, found no "
            "such folder; correct it"
        )
    return _folder(folder, layout)


def _hub(name: str) -> Source:
    def texts(split: str) -> list[list[str]]:
        from datasets import load_dataset

        try:
            return [load_dataset(HUB_DATASET, HUB_CONFIGS[name], split=split)[:]["text"]]
        except Exception as error:  # what hub, network and cache raise has no common class
            raise DataError(
                f"--source {name}: {HUB_DATASET} cannot be read from the Hugging Face hub ({one_line(error)}); pass a "
                "folder of local text files as --source"
            ) from error

    return Source({"name": name, "dataset": HUB_DATASET, "config": HUB_CONFIGS[name]}, texts)


def _folder(folder: Path, layout: Layout | None) -> Source:
    try:
        entries = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
        files: dict[str, list[Path]] = {split: [] for split in WORDS.values()}
        for path in entries:
            if path.suffix not in SUFFIXES or not path.is_file():
                continue
            splits = [split for word, split in WORDS.items() if word in path.stem.lower()]
            if len(splits) > 1:
                raise DataError(
                    f"{path}: expected a name that says one split, this says {' and '.join(splits)}; rename the file"
                )
            if splits:
                files[splits[0]].append(path)
        used = [path for split in SPLITS for path in files[split]]
        contents = {path.name: blake3(path.read_bytes()).hexdigest() for path in used}
    except OSError as error:
        raise DataError(
            f"{error.filename or folder}: cannot be read ({error.strerror}); see to its permissions"
        ) from None
    if not files["train"]:
        names = ", ".join(path.name for path in entries[:8]) or "nothing"
        raise DataError(
            f"{folder}: expected a file named *train* that ends in {', '.join(SUFFIXES)}, found {names}; add one, or "
            "rename the file with the training text"
        )

    description: dict[str, Any] = {"name": folder.resolve().name, "files": contents}
    if not files["validation"]:
        description["validation"] = f"every {HELD_OUT}th article of train, beginning with the first"
    if layout is None:
        layout = detect_layout(islice(_text(path).split("\n"), LOOKED_AT) for path in files["train"])
    if layout != "headings":  # which was the only one, so that data that were prepared then stay what they are
        description["documents"] = layout
    return Source(
        description,
        lambda split: (_text(path).split("\n") for path in files[split]),
        has_validation=bool(files["validation"]),
        layout=layout,
    )


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: expected text in UTF-8, found another byte at {error.start}; convert the file"
        ) from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); see to its permissions") from None
