"""`python -m albert.prepare`: its options, what it prints and its exit codes."""

import os
from pathlib import Path

import pytest

from albert.data.atomic import complete_folder, replaceable
from albert.data.corpus import Corpus
from albert.data.errors import DataError
from albert.data.options import Options
from albert.prepare import main


def test_invented_text_without_a_download(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "[data]"
    assert main(["--source", "synthetic", "--out", str(out), "--sequence-length", "64"]) == 0
    said = capsys.readouterr()
    corpus = Corpus(out)
    assert (corpus.vocab_size, corpus.sequence_length) == (2_000, 64)
    assert "[data]" in said.out and f"{len(corpus):,}" in said.out and f"digest {corpus.digest}" in said.out
    assert "vocabulary 2,000, sequence length 64" in said.out and "data.json, train.arrow" in said.out
    assert all(stage in said.err for stage in ("read train", "train tokenizer", "tokenise train", "write validation"))
    assert main(["--source", "synthetic", "--out", str(out), "--sequence-length", "64"]) == 0
    assert "there already" in capsys.readouterr().out
    assert main(["--check", str(out)]) == 0
    checked = capsys.readouterr().out
    assert "intact: every file was read" in checked and "has the validation loss " in checked


def test_options_as_given_and_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def stop(options: Options, out: Path) -> None:
        asked.append((options, out))
        raise KeyboardInterrupt

    monkeypatch.setattr("albert.data.preparation.prepare", stop)
    monkeypatch.setenv("RAYON_NUM_THREADS", "1")
    for words in (
        "--source wikitext-103 --out x",
        "--source synthetic --out x --tokenizer albert-large-v2 --workers 3",
        "--source t --out x --train-tokenizer --vocab-size 80 --sequence-length 9 --seed 4",
        "--source synthetic --out x",
    ):
        assert main(words.split()) == 130
    assert [options for options, _ in asked] == [
        Options("wikitext-103", "albert-large-v2", 30_000, 512, 0),
        Options("synthetic", "albert-large-v2", 2_000, 128, 0),
        Options("t", None, 80, 9, 4),
        Options("synthetic", None, 2_000, 128, 0),
    ]
    assert asked[0][1] == Path("x") and os.environ["RAYON_NUM_THREADS"] == "3"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--source synthetic", "expected --source and --out, or --check; see python -m albert.prepare --help"),
        ("--check x --out y", "--check: expected it alone, got --source or --out beside it; leave these out"),
        ("--source s --out x --tokenizer t --train-tokenizer", "--train-tokenizer: expected no --tokenizer beside it"),
        ("--source s --out x --vocab-size 9", "--vocab-size: is that of a trained tokenizer; pass --train-tokenizer"),
        ("--source synthetic --out x --vocab-size 0", "--vocab-size: expected at least 15, of which 5"),
        ("--source synthetic --out x --sequence-length 0", "--sequence-length: expected at least 8, got 0"),
        ("--source s --out x --workers 0", "--workers: expected at least 1, got 0"),
        ("--source nowhere --out x", "--source nowhere: expected wikitext-103, wikitext-2, synthetic or a folder"),
        ("--check nowhere", "nowhere: expected a folder of prepared data, found none"),
    ],
)
def test_a_mistake_is_one_line_and_code_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        main(words.split())
    assert end.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"error: {message}")
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def full(*_args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("albert.data.preparation.prepare", full)
    assert main(["--source", "synthetic", "--out", "x"]) == 1
    line = "error: x: No space left on device; make room there, and give the same command again\n"
    assert capsys.readouterr().err == line


@pytest.mark.parametrize("place", [".", "..", "link", "/"])
def test_a_folder_that_cannot_be_replaced_is_refused_before_the_work(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(".")
    monkeypatch.setattr("albert.data.preparation.open_source", lambda *_: pytest.fail("it began"))
    with pytest.raises(SystemExit, match="2"):
        main(["--source", "synthetic", "--out", place])
    assert "got one that this program runs in; name a new folder in it" in capsys.readouterr().err


def test_a_mount_point_is_refused_and_a_link_is_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to("disk/data")
    assert replaceable(tmp_path / "link") == tmp_path.resolve() / "disk/data"
    with complete_folder(tmp_path / "link") as partial:
        (partial / "x").touch()
    assert (tmp_path / "disk/data/x").exists() and (tmp_path / "link").is_symlink()
    monkeypatch.setattr("os.path.ismount", lambda path: Path(path).name == "disk")
    with pytest.raises(DataError, match="got the root of a mounted file system; name a new folder in it"):
        replaceable(tmp_path / "disk")
