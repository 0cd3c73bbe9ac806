"""`python -m albert.export RUN_DIR --out FOLDER`: the ALBERT of a run as a folder that `from_pretrained` loads.

RUN_DIR is a peer's run folder or the coordinator's. FOLDER gets configuration, weights, tokenizer, and a card
(README.md) with what the model was measured at, who signed it, and how to check that.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from btard.boundary import Parser, output_folder, program
from btard.extras import need

USE = """from transformers import AlbertForMaskedLM, AutoTokenizer

model = AlbertForMaskedLM.from_pretrained("FOLDER")  # or AlbertForPreTraining, with the order of sentences
tokenizer = AutoTokenizer.from_pretrained("FOLDER")"""


@program("the same command begins again")
def main(argv: list[str] | None = None) -> int:
    """0; 2 after one line about a mistake."""
    parser = Parser(prog="python -m albert.export", description=__doc__.partition("\n\n")[2])
    parser.add_argument("folder", type=Path, metavar="RUN_DIR", help="the folder of a peer or of the coordinator")
    parser.add_argument(
        "--out", type=output_folder, metavar="FOLDER", required=True, help="where it goes: new or empty"
    )
    parser.add_argument("--data", metavar="FOLDER", help="the prepared data, if they were moved")
    args = parser.parse_args(argv)
    need("experiments", "transformers", "yaml")
    from albert.data.corpus import DataError
    from btard.export.final import ExportError
    from btard.harness.run_folder import RunFolderError
    from btard.harness.settings import exit_with
    from btard.harness.typed_yaml import ConfigError
    from btard.training.layout import LayoutError

    try:
        return export(args.folder, args.out, args.data)
    except (ConfigError, DataError, ExportError, LayoutError, RunFolderError, OSError) as error:
        exit_with(error)


def export(folder: Path, out: Path, data: str | None = None) -> int:
    """Write the model's folder; 0. `data`: the place of the prepared data, by default where the run had them.

    Errors: ConfigError, DataError, ExportError, LayoutError, RunFolderError.
    """
    import torch

    from albert.config import Config
    from albert.data.corpus import Corpus
    from albert.measure import measure, validation_batches
    from albert.model import make_model
    from btard.export.card import card, signers
    from btard.export.final import ExportError, read_final
    from btard.export.folder import copy_proof, new_folder
    from btard.harness.recorded import read_recorded
    from btard.task import PARAMETERS
    from btard.training.layout import read_layout
    from btard.training.vector import views

    final = read_final(folder)
    _, agreed = read_layout(folder)
    config: Config = read_recorded(Config, folder, without=("attack",))
    corpus = Corpus(data or config.data.path)
    if agreed.get("data") != corpus.digest:
        raise ExportError(
            f"{corpus.folder}: expected the data of the run, of digest {agreed.get('data')}, found {corpus.digest}; "
            "name them with --data"
        )
    model = make_model(config.model, corpus.vocab_size, corpus.sequence_length, config.seed)
    with torch.no_grad():
        for parameter, view in zip(model.parameters(), views(model, final.tensors[PARAMETERS]), strict=True):
            parameter.copy_(view)
    batches = validation_batches(corpus.folder)
    measured = measure(model, batches)
    new_folder(out)
    model.save_pretrained(out)
    shutil.copytree(corpus.tokenizer_folder, out, dirs_exist_ok=True)
    copy_proof(final, out)
    numbers = ", ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in measured.items())
    notes = [
        f"On {sum(len(batch['labels']) for batch in batches)} validation examples: {numbers}.",
        "`python -m albert.evaluate FOLDER --data DATA` measures that again, on the data with the digest above.",
    ]
    front = {"library_name": "transformers", "pipeline_tag": "fill-mask", "language": "en"}
    text = card(final, agreed, title=f"ALBERT, run {config.run_id}", use=USE, front=front, notes=notes)
    (out / "README.md").write_text(text, encoding="utf-8")
    print(f"{out}: step {final.step}, {numbers}; signed by {signers(final.signed)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
