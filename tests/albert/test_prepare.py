"""`python -m albert.prepare`: its options, what it prints and its exit codes."""

import os
from pathlib import Path

import pytest

from albert import prepare as module
from albert.data.corpus import Corpus
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
    assert "intact: every file was read" in capsys.readouterr().out


def test_options_as_given_and_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def stop(options: module.Options, out: Path) -> None:
        asked.append((options, out))
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "prepare", stop)
    monkeypatch.setenv("RAYON_NUM_THREADS", "1")
    for words in (
        "--source wikitext-103 --out x",
        "--source synthetic --out x --tokenizer albert-large-v2 --workers 3",
        "--source t --out x --train-tokenizer --vocab-size 80 --sequence-length 9 --seed 4",
        "--source synthetic --out x",
    ):
        assert main(words.split()) == 130
    assert [options for options, _ in asked] == [
        module.Options("wikitext-103", "albert-large-v2", 30_000, 512, 0),
        module.Options("synthetic", "albert-large-v2", 2_000, 128, 0),
        module.Options("t", None, 80, 9, 4),
        module.Options("synthetic", None, 2_000, 128, 0),
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

    monkeypatch.setattr(module, "prepare", full)
    with pytest.raises(SystemExit):
        main(["--source", "synthetic", "--out", "x"])
    assert capsys.readouterr().err == "error: x: cannot be written (No space left on device); see to the disk\n"
