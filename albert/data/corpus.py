"""`Corpus`: one split of a prepared folder, memory-mapped."""

from bisect import bisect_right
from itertools import accumulate
from pathlib import Path

import numpy as np

from albert.data.errors import DataError
from albert.data.folder import AGAIN, TOKENIZER, read_examples, read_record

__all__ = ["Corpus", "DataError"]


class Corpus:
    """The examples of a split, each two neighbouring segments of an article.

    Opening reads `data.json` and the positions of the examples, not these: they lie on the disk, and in memory once for
    all processes that use them. Raises DataError if the folder is none that `python -m albert.prepare` made, if it has
    another format, or if it is damaged as far as sizes and `data.json` show; `python -m albert.prepare --check` reads
    everything.
    """

    def __init__(self, folder: str | Path, split: str = "train") -> None:
        self.folder = Path(folder).expanduser()
        self.split = split
        record = read_record(self.folder)
        if split not in record["splits"]:
            raise DataError(f"{self.folder}: expected a split of {', '.join(record['splits'])}, got {split!r}")
        self.vocab_size: int = record["vocab_size"]
        """Tokens, special ones included"""
        self.sequence_length: int = record["sequence_length"]
        """The most tokens of an example, [CLS] and both [SEP] included"""
        self.digest: str = record["digest"]
        """Hex; peers with the same digest draw the same batches"""
        self.special_tokens: dict[str, int] = record["special_tokens"]
        """The ids of pad, unk, cls, sep and mask"""
        self.is_special = np.zeros(self.vocab_size, bool)
        """[vocab_size]: whether a token is special, so that it is neither masked nor used to replace a masked one"""
        self.is_special[record["special_ids"]] = True
        self.ordinary = np.flatnonzero(~self.is_special)
        """int64: the ids that are not special"""
        self._blocks: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = [
            (rows.values.to_numpy(), rows.offsets.to_numpy(), first.to_numpy())
            for rows, first in read_examples(self.folder, split)
        ]
        self._ends = list(accumulate(len(first) for _, _, first in self._blocks))
        wanted = record["splits"][split]["examples"]
        if len(self) != wanted:
            raise DataError(f"{self.folder}: expected {wanted} examples in {split}, found {len(self)}; {AGAIN}")

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def pair(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Return segments A and B of an example, [a] and [b] int32, a + b <= sequence_length - 3.

        They are views of the file and cannot be written to. Raises IndexError outside of 0 .. len - 1.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        block = bisect_right(self._ends, index)
        tokens, offsets, first = self._blocks[block]
        row = index - (self._ends[block - 1] if block else 0)
        begin, end = offsets[row], offsets[row + 1]
        middle = begin + first[row]
        return tokens[begin:middle], tokens[middle:end]

    def frequencies(self) -> np.ndarray:
        """[number of ordinary tokens] int64: how often each of `ordinary` occurs in all examples."""
        counts = sum(np.bincount(tokens, minlength=self.vocab_size) for tokens, _, _ in self._blocks)
        return np.asarray(counts)[self.ordinary]

    @property
    def tokenizer_folder(self) -> Path:
        """The folder in which `transformers.AutoTokenizer.from_pretrained` finds the tokenizer."""
        return self.folder / TOKENIZER
