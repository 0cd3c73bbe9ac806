"""`python -m albert.prepare --source SOURCE --out DATA`: turns text into the segment pairs on which a swarm trains.

    python -m albert.prepare --source wikitext-103 --out data/wikitext-103
    python -m albert.prepare --source wikitext-2 --out data/wikitext-2 --train-tokenizer --vocab-size 2000 \
        --sequence-length 64
    python -m albert.prepare --source synthetic --out data/synthetic      # generated text: downloads nothing
    python -m albert.prepare --check data/wikitext-103

DATA appears complete or not at all: after an interruption, repeat the command.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from albert.data.errors import DataError
from albert.data.options import DEFAULT, SYNTHETIC, Options
from albert.data.text import LAYOUTS, SHOWN
from btard.boundary import Parser, program

PROGRAM = "python -m albert.prepare"


def print_summary(record: dict[str, Any], out: Path, remark: str) -> None:
    """Print what a prepared folder holds; `remark` says how it was created."""
    from albert.data.folder import RECORD, TOKENIZER
    from btard.harness.tables import show

    rows = []
    for split, counts in record["splits"].items():
        mean = counts["tokens"] / counts["examples"]
        rows.append([split, *(f"{counts[name]:,}" for name in ("articles", "examples", "tokens")), f"{mean:.1f}"])
    show(str(out), ("split", ">documents", ">examples", ">tokens", ">tokens per example"), rows)
    layout = record.get("documents", "headings")
    print(f"a document is {SHOWN[layout]} (--documents {layout})")
    print(f"vocabulary {record['vocab_size']:,}, sequence length {record['sequence_length']}, {remark}")
    print(f"digest {record['digest']}")
    print(f"files: {out}/{RECORD}, {', '.join(f'{split}.arrow' for split in record['splits'])}, {TOKENIZER}/")


@program("nothing was left behind, the same command begins again")
def main(argv: Sequence[str] | None = None) -> int:
    """Return the exit code: 0, 2 after one line about what is wrong, or 130 after an interruption."""
    parser = Parser(prog=PROGRAM, description=__doc__)
    parser.add_argument(
        "--source", help="wikitext-103, wikitext-2, synthetic, or a folder with text files *train*, ..."
    )
    parser.add_argument("--out", type=Path, metavar="DATA", help="the folder to make")
    parser.add_argument("--check", type=Path, metavar="DATA", help="read all of a prepared folder and verify it")
    parser.add_argument(
        "--documents",
        choices=LAYOUTS,
        help="what separates the documents of a folder of text files (by default what they look like): headings "
        "= Title = as in WikiText, blank lines as in BERT's format, every line, or files alone",
    )
    parser.add_argument("--tokenizer", metavar="NAME", help=f"{DEFAULT} (default) or a folder with a tokenizer")
    parser.add_argument("--train-tokenizer", action="store_true", help="train one on the text; default for synthetic")
    parser.add_argument("--vocab-size", type=int, help="at most, of a trained tokenizer (30000; for synthetic 2000)")
    parser.add_argument("--sequence-length", type=int, help="tokens of an example (512; for synthetic 128)")
    parser.add_argument("--seed", type=int, default=0, help="of segment boundaries and of synthetic text (0)")
    parser.add_argument("--workers", type=int, help="threads that tokenise (as many as there are cores)")
    arguments = parser.parse_args(argv)
    begin = time.monotonic()
    try:
        if arguments.check is not None:
            if arguments.source is not None or arguments.out is not None:
                raise DataError("--check: expected it alone, got --source or --out beside it; leave these out")
            from albert.data.corpus import Corpus
            from albert.data.evaluation import guessing_loss
            from albert.data.folder import check

            print_summary(check(folder := arguments.check), folder, "intact: every file was read")
            guessing = guessing_loss(Corpus(folder, "train"), Corpus(folder, "validation"))
            print(f"guessing by how frequent words are has the validation loss {guessing:.2f}")
            return 0
        options = _options(arguments)
        if arguments.workers is not None:
            # The tokenizer's thread pool starts with its first use and reads it then.
            os.environ["RAYON_NUM_THREADS"] = str(arguments.workers)
        from albert.data.preparation import prepare

        record, made = prepare(options, arguments.out)
    except OSError as error:
        if error.filename is None:
            error.filename = str(arguments.out)
        raise
    print_summary(record, arguments.out, f"{time.monotonic() - begin:.0f} s" if made else "there already")
    return 0


def _options(arguments: argparse.Namespace) -> Options:
    """Return the options on the command line, whose defaults depend on the source."""
    if arguments.source is None or arguments.out is None:
        raise DataError(f"expected --source and --out, or --check; see {PROGRAM} --help")
    if arguments.workers is not None and arguments.workers < 1:
        raise DataError(f"--workers: expected at least 1, got {arguments.workers}")
    if arguments.train_tokenizer and arguments.tokenizer is not None:
        raise DataError("--train-tokenizer: expected no --tokenizer beside it; choose one of the two")
    synthetic = arguments.source == SYNTHETIC
    trained = arguments.train_tokenizer or (synthetic and arguments.tokenizer is None)
    if arguments.vocab_size is not None and not trained:
        raise DataError("--vocab-size: is that of a trained tokenizer; pass --train-tokenizer, too")
    return Options(
        source=arguments.source,
        tokenizer=None if trained else arguments.tokenizer or DEFAULT,
        vocab_size=_default(arguments.vocab_size, 2_000 if synthetic else 30_000),
        sequence_length=_default(arguments.sequence_length, 128 if synthetic else 512),
        seed=arguments.seed,
        documents=arguments.documents,
    )


def _default(given: int | None, otherwise: int) -> int:
    return otherwise if given is None else given


if __name__ == "__main__":
    sys.exit(main())
