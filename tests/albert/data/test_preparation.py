"""Preparing: the same folder for the same text, complete or not at all, and never over something else."""

import fcntl
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from albert.data import preparation
from albert.data.atomic import complete_folder
from albert.data.corpus import Corpus
from albert.data.errors import DataError
from albert.data.folder import check
from albert.data.options import Options
from albert.data.preparation import prepare

TEXT = "".join(
    f"\n = Town {i} = \n\n Town {i} lies on a river . It has {i} bridges . Many boats pass them .\n\n"
    f" = = Story = = \n\n It was built in {1500 + i} . A fire burned it in {1600 + i} . It was built again .\n"
    for i in range(60)
)
DIGEST = "1fd32af2eca38940458ca1eb1f3ea5d4a7ac5d49725d1ffc6e23639e9d5830d3"


@pytest.fixture
def options(tmp_path: Path) -> Options:
    folder = tmp_path / "text"
    folder.mkdir()
    (folder / "train.txt").write_text(TEXT)
    return Options(str(folder), tokenizer=None, vocab_size=120, sequence_length=24)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_same_text_gives_the_same_files(options: Options, tmp_path: Path) -> None:
    for name in ("one", "two"):
        _, made = prepare(options, tmp_path / name, progress=False)
        assert made
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert sorted(contents(tmp_path / "one")) == [
        "data.json",
        "tokenizer/tokenizer.json",
        "tokenizer/tokenizer_config.json",
        "train.arrow",
        "validation.arrow",
    ]
    assert Corpus(tmp_path / "one").digest == DIGEST
    prepare(replace(options, seed=1), tmp_path / "three", progress=False)
    assert Corpus(tmp_path / "three").digest != DIGEST


def test_data_json_says_what_made_it_without_naming_this_machine(options: Options, tmp_path: Path) -> None:
    record, _ = prepare(options, tmp_path / "out", progress=False)
    assert record["request"]["source"]["name"] == "text"
    assert record["request"]["source"]["validation"] == "every 20th article of train, beginning with the first"
    assert record["request"]["tokenizer"] == {"trained": 120}
    assert (record["splits"]["train"]["articles"], record["splits"]["validation"]["articles"]) == (57, 3)
    assert str(tmp_path) not in (tmp_path / "out/data.json").read_text()
    corpus = Corpus(tmp_path / "out")
    assert record["splits"]["train"]["examples"] == len(corpus)
    assert record["splits"]["train"]["tokens"] == sum(len(part) for i in range(len(corpus)) for part in corpus.pair(i))


def test_segments_follow_each_other_in_their_article(options: Options, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    prepare(options, tmp_path / "out", progress=False)
    corpus = Corpus(tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(corpus.tokenizer_folder)
    text = " ".join(TEXT.lower().split()).replace("= = story = = ", "")
    for index in range(len(corpus)):
        one, two = (tokenizer.decode(part) for part in corpus.pair(index))
        assert f"{one} {two}" in text


def test_a_complete_folder_stays(options: Options, tmp_path: Path) -> None:
    first, _ = prepare(options, tmp_path / "out", progress=False)
    before = (tmp_path / "out/train.arrow").stat().st_mtime_ns
    assert prepare(options, tmp_path / "out", progress=False) == (first, False)
    assert (tmp_path / "out/train.arrow").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"seed": 1}, "seed"),
        ({"sequence_length": 32}, "sequence_length"),
        ({"vocab_size": 100}, "tokenizer"),
        ({"source": "synthetic"}, "source"),
    ],
)
def test_a_folder_of_other_options_is_not_overwritten(
    options: Options, tmp_path: Path, change: dict[str, str | int], key: str
) -> None:
    prepare(options, tmp_path / "out", progress=False)
    with pytest.raises(DataError, match=rf"out: holds data made with another {key} \(.*\); choose another --out, or"):
        prepare(replace(options, **change), tmp_path / "out", progress=False)
    check(tmp_path / "out", progress=False)


def test_neither_are_other_files_or_a_broken_folder(options: Options, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"text: expected no such folder or an empty one, found other files; choose"):
        prepare(options, tmp_path / "text", progress=False)
    prepare(options, tmp_path / "out", progress=False)
    (tmp_path / "out/train.arrow").unlink()
    with pytest.raises(DataError, match=r"train.arrow: expected this file, found none; delete the folder"):
        prepare(options, tmp_path / "out", progress=False)


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError, DataError])
def test_an_interruption_leaves_nothing_and_the_same_again_is_whole(
    options: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    write = preparation.write_examples

    def interrupted(file: Path, *args: object, **kw: object) -> str:
        if file.name == "validation.arrow":
            file.write_bytes(b"half")
            raise error
        return write(file, *args, **kw)

    monkeypatch.setattr(preparation, "write_examples", interrupted)
    with pytest.raises(error):
        prepare(options, tmp_path / "out", progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["text"]
    monkeypatch.undo()
    prepare(options, tmp_path / "out", progress=False)
    check(tmp_path / "out", progress=False)


def test_what_a_killed_process_left_is_begun_again(options: Options, tmp_path: Path) -> None:
    left = tmp_path / "out.partial"
    (left / "tokenizer").mkdir(parents=True)
    (left / "train.arrow").write_bytes(b"half")
    (left / "strange").write_bytes(b"left over")
    prepare(options, tmp_path / "out", progress=False)
    assert not left.exists() and "strange" not in contents(tmp_path / "out")


def test_two_processes_do_not_make_one_folder(options: Options, tmp_path: Path) -> None:
    (tmp_path / "out.partial").mkdir()
    other = os.open(tmp_path / "out.partial", os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)
    with pytest.raises(DataError, match=r"out.partial: another process is preparing this folder; wait for it to end"):
        prepare(options, tmp_path / "out", progress=False)
    os.close(other)
    prepare(options, tmp_path / "out", progress=False)


def test_a_folder_that_appeared_meanwhile_stays(tmp_path: Path) -> None:
    def make() -> None:
        with complete_folder(tmp_path / "data") as partial:
            (partial / "mine").touch()
            (tmp_path / "data").mkdir()
            (tmp_path / "data/theirs").touch()

    with pytest.raises(DataError, match=r"data: cannot take its place \(Directory not empty\); choose another --out"):
        make()
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == ["data", "data/theirs"]


def test_a_place_that_cannot_be_written_is_refused(options: Options, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"out.partial: cannot be made \(File exists\); choose another --out"):
        prepare(options, tmp_path / "file/out", progress=False)


def test_a_tokenizer_of_a_folder(options: Options, tmp_path: Path) -> None:
    prepare(options, tmp_path / "first", progress=False)
    shutil.copytree(tmp_path / "first/tokenizer", tmp_path / "mine")
    again = replace(options, tokenizer=str(tmp_path / "mine"))
    record, _ = prepare(again, tmp_path / "out", progress=False)
    assert record["request"]["tokenizer"]["name"] == "mine"
    assert record["digest"] == Corpus(tmp_path / "first").digest
    assert prepare(again, tmp_path / "out", progress=False)[1] is False


def test_too_little_text_is_refused(options: Options, tmp_path: Path) -> None:
    Path(options.source, "valid.txt").write_text("One .")
    with pytest.raises(
        DataError, match=r"expected documents of at least two sentences for validation, found none among 1"
    ):
        prepare(options, tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.partial").exists()


def test_too_short_examples_are_refused() -> None:
    with pytest.raises(DataError, match=r"^--sequence-length: expected at least 8, got 7"):
        Options("synthetic", sequence_length=7)


def test_no_pair_crosses_documents_that_blank_lines_separate(tmp_path: Path) -> None:
    """A sentence per line, as BERT's own tools write a corpus; every document has words of its own."""
    from transformers import AutoTokenizer

    folder = tmp_path / "text"
    folder.mkdir()
    documents = ["".join(f"W{i}x{k} w{i}y{k} w{i}z{k}.\n" for k in range(6)) for i in range(40)]
    (folder / "train.txt").write_text("\n".join(documents))
    options = Options(str(folder), tokenizer=None, vocab_size=400, sequence_length=40)
    record, _ = prepare(options, tmp_path / "out", progress=False)
    assert record["documents"] == record["request"]["source"]["documents"] == "blank-lines"
    assert sum(split["articles"] for split in record["splits"].values()) == 40
    corpus = Corpus(tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(corpus.tokenizer_folder)
    for index in range(len(corpus)):
        words = " ".join(tokenizer.decode(part) for part in corpus.pair(index)).split()
        assert len({word.partition(mark)[0] for word in words for mark in "xyz" if mark in word}) == 1
    with pytest.raises(DataError, match="holds data made with another source"):
        prepare(replace(options, documents="lines"), tmp_path / "out", progress=False)
    with pytest.raises(DataError, match=r"expected documents of at least two sentences .* by --documents"):
        prepare(replace(options, documents="lines"), tmp_path / "lines", progress=False)
    with pytest.raises(DataError, match=r"found one, as a document is a whole file; --documents says what it is"):
        prepare(replace(options, documents="files"), tmp_path / "files", progress=False)
    with pytest.raises(DataError, match="--documents lines: synthetic has headings"):
        prepare(Options("synthetic", tokenizer=None, documents="lines"), tmp_path / "synthetic", progress=False)
