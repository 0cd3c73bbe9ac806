"""`python -m albert.evaluate FOLDER --data DATA`: measures an exported ALBERT on validation data.

The numbers are those that a coordinator shows at its checkpoints, on the same examples: losses and accuracies of masked
words and of the order of sentences. FOLDER is what `python -m albert.export` has written, or any other ALBERT with the
same vocabulary; DATA is a folder of `python -m albert.prepare`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from btard.boundary import Parser, program
from btard.extras import need

if TYPE_CHECKING:
    from transformers import AlbertForPreTraining


@program("the same command begins again")
def main(argv: list[str] | None = None) -> int:
    """0 after a JSON object with the numbers by name; 2 after one line about a mistake."""
    parser = Parser(prog="python -m albert.evaluate", description=__doc__.partition("\n\n")[2])
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="the model, as save_pretrained writes it")
    parser.add_argument("--data", type=Path, metavar="DATA", required=True, help="the prepared data")
    parser.add_argument("--all", action="store_true", help="the whole validation split, not the coordinator's examples")
    args = parser.parse_args(argv)
    need("experiments", "transformers", "pyarrow")
    from albert.measure import EXAMPLES, measure, validation_batches

    batches = validation_batches(args.data, None if args.all else EXAMPLES)
    print(json.dumps(measure(load_model(args.folder, args.data), batches), indent=1))
    return 0


def load_model(folder: Path, data: Path) -> AlbertForPreTraining:
    """The ALBERT in `folder`. Errors: DataError if there is none, or if the data have more words than it knows."""
    from transformers import AlbertForPreTraining

    from albert.data.corpus import Corpus, DataError
    from albert.data.tokenizer import one_line

    if not (folder / "config.json").is_file():
        raise DataError(f"{folder}: expected a model with its config.json, found none; name what albert.export wrote")
    try:
        model = AlbertForPreTraining.from_pretrained(folder)
    except (OSError, ValueError, RuntimeError) as error:
        raise DataError(f"{folder}: cannot be read as an ALBERT ({one_line(error)})") from None
    corpus = Corpus(data)
    known, length = model.config.vocab_size, model.config.max_position_embeddings
    if known != corpus.vocab_size or length < corpus.sequence_length:
        raise DataError(
            f"{data}: has {corpus.vocab_size} tokens and sequences of {corpus.sequence_length}, the model {known} and "
            f"{length}; take the data that it was trained on"
        )
    return model


if __name__ == "__main__":
    sys.exit(main())
