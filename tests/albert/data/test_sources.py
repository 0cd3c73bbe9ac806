"""Where text comes from: folders and what is wrong with them, the hub by a stand-in, and invented text."""

from pathlib import Path

import pytest
from datasets import Dataset

from albert.data.errors import DataError
from albert.data.sources import HELD_OUT, open_source
from albert.data.synthetic import synthetic_lines


def write(folder: Path, **files: str) -> Path:
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text, encoding="utf-8")
    return folder


def article(number: int) -> str:
    return f" \n = Title {number} = \n \n Text {number} . \n"


def test_reads_a_folder(tmp_path: Path) -> None:
    folder = write(
        tmp_path / "set",
        wiki_train_0__tokens=article(0) + article(1),
        wiki_train_1__txt="Goes on .\n",
        Validation__raw=article(2),
        test__txt=article(3),
        train__md="no text file",
    )
    source = open_source(str(folder))
    assert source.read(progress=False) == {
        "train": [["Text 0 ."], ["Text 1 ."], ["Goes on ."]],
        "validation": [["Text 2 ."]],
    }
    assert source.description["name"] == "set"
    assert sorted(source.description["files"]) == ["Validation.raw", "wiki_train_0.tokens", "wiki_train_1.txt"]


def test_without_a_validation_file_some_articles_are_held_out(tmp_path: Path) -> None:
    count = 2 * HELD_OUT + 1
    folder = write(tmp_path, train__txt="".join(map(article, range(count))), test__txt=article(99))
    source = open_source(str(folder))
    found = source.read(progress=False)
    assert found["validation"] == [[f"Text {i} ."] for i in (0, HELD_OUT, 2 * HELD_OUT)]
    assert found["train"] == [[f"Text {i} ."] for i in range(count) if i % HELD_OUT]
    assert source.description["validation"] == "every 20th article of train, beginning with the first"


def test_the_description_changes_with_the_text(tmp_path: Path) -> None:
    first = open_source(str(write(tmp_path, train__txt=article(0)))).description
    assert open_source(str(tmp_path)).description == first
    assert open_source(str(write(tmp_path, train__txt=article(1)))).description != first


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {"valid__txt": "x", "notes__md": "x"},
            r"expected a file named \*train\* .* found notes.md, valid.txt; add one, or rename",
        ),
        ({}, r"expected a file named \*train\* that ends in .txt, .tokens, .raw, found nothing; add one"),
        ({"train_test__txt": "x"}, r"train_test.txt: expected a name that says one split, this says train and test"),
        ({"train__txt": article(0)}, r"expected a file named \*valid\* or at least two documents .* found one"),
        ({"train__txt": "\n \n"}, r"expected articles for train, found no text"),
        ({"train__txt": article(0), "valid__txt": ""}, r"expected articles for validation, found no text"),
    ],
)
def test_what_a_folder_lacks_is_said_in_one_line(tmp_path: Path, files: dict[str, str], message: str) -> None:
    with pytest.raises(DataError, match=message) as error:
        open_source(str(write(tmp_path, **files))).read(progress=False)
    assert "\n" not in str(error.value)


def test_text_in_another_encoding_is_refused(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_bytes("caf\xe9".encode("latin-1"))
    with pytest.raises(DataError, match=r"train.txt: expected text in UTF-8, found another byte at 3; convert"):
        open_source(str(tmp_path)).read(progress=False)


def test_an_unknown_source_is_refused() -> None:
    with pytest.raises(DataError, match=r"^--source x: expected wikitext-103, wikitext-2, synthetic or a folder"):
        open_source("x")


def test_the_hub_by_a_stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(path: str, name: str, *, split: str) -> Dataset:
        assert (path, name) == ("Salesforce/wikitext", "wikitext-103-raw-v1")
        return Dataset.from_dict({"text": ["", f" = {split} = \n", "", " Text . \n"]})

    monkeypatch.setattr("datasets.load_dataset", load)
    source = open_source("wikitext-103")
    assert source.read(progress=False) == {"train": [["Text ."]], "validation": [["Text ."]]}
    assert source.description["config"] == "wikitext-103-raw-v1"


def test_a_hub_out_of_reach_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_args: str, **_kw: str) -> None:
        raise ConnectionError("Couldn't reach\nthe Hub")

    monkeypatch.setattr("datasets.load_dataset", fail)
    with pytest.raises(DataError, match=r"hub \(Couldn't reach the Hub\); pass a folder of local text files") as error:
        open_source("wikitext-2").read(progress=False)
    assert "\n" not in str(error.value)


def test_invented_text_is_its_seed_s_alone() -> None:
    text = list(synthetic_lines(0, "train"))
    assert text == list(synthetic_lines(0, "train")) != list(synthetic_lines(1, "train"))
    assert 300_000 < sum(map(len, text)) < 900_000
    found = open_source("synthetic").read(progress=False)
    assert len(found["train"]) == 320 and len(found["validation"]) == 32
    assert all(len(article) >= 5 for article in found["train"])
