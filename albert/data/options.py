"""What `albert.prepare` can be asked for. Imports nothing that takes long: the command line is checked by it."""

from __future__ import annotations

from dataclasses import dataclass

from albert.data.errors import DataError
from albert.data.text import Layout

SYNTHETIC = "synthetic"
"""The source that is generated."""
DEFAULT = "albert-large-v2"
"""The tokenizer of the paper's model."""
LEAST_LENGTH = 8


@dataclass(frozen=True)
class Options:
    """What to prepare, and from which source."""

    source: str
    """`wikitext-103`, `wikitext-2`, `synthetic`, or a folder of text files"""
    tokenizer: str | None = DEFAULT
    """`albert-large-v2` or a folder; None: one is trained on the text"""
    vocab_size: int = 30_000
    """Size of a trained tokenizer, special tokens included"""
    sequence_length: int = 512
    seed: int = 0
    """Seed of where segments end, and of generated text"""
    documents: Layout | None = None
    """What separates documents in a folder of text files; None: detected from the train files"""

    def __post_init__(self) -> None:
        if self.sequence_length < LEAST_LENGTH:
            raise DataError(f"--sequence-length: expected at least {LEAST_LENGTH}, got {self.sequence_length}")
