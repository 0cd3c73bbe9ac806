"""Opening a prepared folder: what it holds, and every way in which a folder is refused."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from datasets import Dataset

from albert.data import folder as layout
from albert.data.corpus import Corpus, DataError
from albert.data.folder import SCHEMA, check, write_record
from tests.albert.data.conftest import MakeCorpus


@pytest.fixture
def copy(synthetic: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(synthetic, tmp_path / "copy"))


def flip_byte(file: Path, at: int) -> None:
    content = bytearray(file.read_bytes())
    content[at] ^= 1
    file.write_bytes(content)


def reseal(folder: Path, **changes: object) -> None:
    """Write data.json as if it had always said this."""
    record = json.loads((folder / "data.json").read_text())
    kept = {key: value for key, value in record.items() if key not in ("seal", "files")}
    write_record(folder, {**kept, **changes})


def test_what_a_corpus_holds(make_corpus: MakeCorpus) -> None:
    examples = [([10 + i % 20] * (1 + i % 3), [5] * (1 + i % 7)) for i in range(10_000)]
    corpus = make_corpus(examples)
    assert len(corpus) == 10_000 and corpus.vocab_size == 40 and corpus.sequence_length == 16
    # The ends of the blocks in which they are written, among others.
    for index in (0, 1, 4_095, 4_096, 8_191, 8_192, 9_999):
        assert tuple(part.tolist() for part in corpus.pair(index)) == examples[index]
    for index in (-1, 10_000):
        with pytest.raises(IndexError, match=f"example {index} of 10000"):
            corpus.pair(index)


def test_examples_stay_on_the_disk(make_corpus: MakeCorpus) -> None:
    one, two = make_corpus([([10, 11], [12])]).pair(0)
    assert not one.flags.owndata and not one.flags.writeable and one.dtype == np.int32
    with pytest.raises(ValueError, match="read-only"):
        two[0] = 1


def test_datasets_opens_the_examples_too(synthetic: Path) -> None:
    corpus, rows = Corpus(synthetic), Dataset.from_file(str(synthetic / "train.arrow"))
    assert len(rows) == len(corpus)
    one, two = corpus.pair(7)
    assert rows[7] == {"tokens": [*one.tolist(), *two.tolist()], "first": len(one)}


def test_both_splits_have_the_digest_of_the_folder(synthetic: Path) -> None:
    train, validation = Corpus(synthetic), Corpus(str(synthetic), "validation")
    assert train.digest == validation.digest and len(bytes.fromhex(train.digest)) == 32
    assert len(train) > 8 * len(validation) > 0


def test_the_digest_is_that_of_the_content(make_corpus: MakeCorpus) -> None:
    examples = [([10, 11], [12]), ([13], [14])]
    first = make_corpus(examples).digest
    assert make_corpus(examples).digest == first
    for other in ([([10], [11, 12]), ([13], [14])], [([10, 11], [12, 13]), ([14], [])], examples[::-1], examples[:1]):
        assert make_corpus(other).digest != first


def test_an_intact_folder_passes_the_check(copy: Path) -> None:
    assert check(copy, progress=False)["digest"] == Corpus(copy).digest


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "train.arrow").unlink(), r"train.arrow: expected this file, found none; delete the folder"),
        (lambda f: (f / "tokenizer/tokenizer.json").unlink(), r"tokenizer.json: expected this file, found none"),
        (
            lambda f: (f / "train.arrow").write_bytes((f / "train.arrow").read_bytes()[:-1]),
            r"train.arrow: expected \d+ bytes, found \d+; delete the folder and prepare it again",
        ),
        (lambda f: (f / "data.json").write_text("{"), r"data.json: expected JSON, found something else; delete"),
        (lambda f: (f / "data.json").write_text("[]"), r"expected data of format 1, found format None; delete"),
        (
            lambda f: (f / "data.json").write_text((f / "data.json").read_text().replace('"format": 1', '"format": 2')),
            r"expected data of format 1, found format 2; delete the folder and prepare it again",
        ),
        (
            lambda f: (f / "data.json").write_text((f / "data.json").read_text().replace("2000", "2001")),
            r"data.json: its seal does not fit what it says, so that it was changed or damaged; delete",
        ),
        (
            lambda f: reseal(f, splits={"train": {"examples": 5}, "validation": {"examples": 5}}),
            r"expected 5 examples in train, found \d+; delete",
        ),
        (lambda f: [(f / "train.arrow").write_bytes(b"text"), reseal(f)], r"train.arrow: expected an Arrow stream"),
    ],
)
def test_a_damaged_folder_is_refused_on_opening(copy: Path, damage: Callable[[Path], object], message: str) -> None:
    damage(copy)
    with pytest.raises(DataError, match=message) as error:
        Corpus(copy)
    assert "\n" not in str(error.value) and str(copy) in str(error.value)


def test_other_columns_are_refused(copy: Path) -> None:
    with pa.OSFile(str(copy / "train.arrow"), "wb") as sink:
        pa.ipc.new_stream(sink, pa.schema([SCHEMA.field("first")])).close()
    reseal(copy)
    with pytest.raises(DataError, match=r"train.arrow: expected columns tokens and first, found \['first'\]; delete"):
        Corpus(copy)


@pytest.mark.parametrize("name", ["train.arrow", "validation.arrow", "tokenizer/tokenizer.json"])
def test_a_changed_byte_is_found_by_the_check(copy: Path, name: str) -> None:
    flip_byte(copy / name, (copy / name).stat().st_size // 2)
    Corpus(copy)
    with pytest.raises(DataError, match=rf"{name}: its hash is not the one in data.json, so that it was damaged"):
        check(copy, progress=False)


def test_a_digest_of_other_examples_is_found_by_the_check(copy: Path) -> None:
    reseal(copy, digest="00" * 32)
    with pytest.raises(DataError, match=r"examples and tokenizer do not give the digest in data.json; delete"):
        check(copy, progress=False)


def test_no_folder_or_another_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none: expected a folder of prepared data, found none; make it with: python"):
        Corpus(tmp_path / "none")
    with pytest.raises(DataError, match=r"found no data.json in it; correct the path, or make one: python -m albert"):
        Corpus(tmp_path)
    (tmp_path / "data.partial").mkdir()
    with pytest.raises(DataError, match=r"found none but what an interrupted run left; repeat its command"):
        Corpus(tmp_path / "data")


def test_an_unknown_split_is_refused(synthetic: Path) -> None:
    with pytest.raises(DataError, match=r"expected a split of train, validation, got 'test'"):
        Corpus(synthetic, "test")


def test_opening_reads_no_examples_and_needs_no_tokenizer(synthetic: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "_hash", lambda file: pytest.fail(f"read {file}"))
    for module in ("datasets", "tokenizers", "transformers"):
        monkeypatch.setitem(sys.modules, module, None)
    Corpus(synthetic)
