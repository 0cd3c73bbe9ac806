"""`python -m btard.export RUN_DIR --out FOLDER`: the named parameters of a run as safetensors, and a card.

RUN_DIR is the folder of any run that has the names of its parameters (`model.json`): a simulated run, a run under
torchrun, a peer's or the coordinator's of a swarm. If a run has not finished, its newest checkpoint is exported.
`python -m btard.export --check FOLDER` checks an exported model against the signatures stored with it.
"""

from __future__ import annotations

import sys
from pathlib import Path

from btard.boundary import Parser, output_folder, program
from btard.extras import need


@program("the same command begins again")
def main(argv: list[str] | None = None) -> int:
    """0; 2 after one line about a mistake, 1 if --check finds too little signed."""
    parser = Parser(prog="python -m btard.export", description=__doc__.partition("\n\n")[2])
    parser.add_argument("folder", type=Path, metavar="RUN_DIR", help="the run's folder; with --check an exported one")
    parser.add_argument("--out", type=output_folder, metavar="FOLDER", help="where the model goes: new or empty")
    parser.add_argument("--check", action="store_true", help="check an exported folder")
    args = parser.parse_args(argv)
    if args.check == (args.out is not None):
        parser.error("give either --out FOLDER or --check")
    need("swarm", "rich", "yaml")
    from btard.export.final import ExportError
    from btard.harness.run_folder import RunFolderError
    from btard.harness.settings import exit_with
    from btard.training.layout import LayoutError

    try:
        return check(args.folder) if args.check else export(args.folder, args.out)
    except (ExportError, LayoutError, RunFolderError, OSError) as error:
        exit_with(error)


def export(folder: Path, out: Path) -> int:
    """Write model and card; 0. Errors: ExportError, LayoutError, RunFolderError."""
    from safetensors.torch import save_file

    from btard.export.card import card, code, signers
    from btard.export.final import read_final
    from btard.export.folder import WEIGHTS, copy_proof, new_folder
    from btard.task import PARAMETERS
    from btard.training.layout import KEPT, check_places, copies, read_layout

    final = read_final(folder)
    slots, agreed = read_layout(folder)
    check_places(slots, final.tensors[PARAMETERS].numel())
    tensors = copies(slots, final.tensors, final.peer)
    new_folder(out)
    save_file(tensors, out / WEIGHTS, {"format": "pt"})
    copy_proof(final, out)
    load = f'model.load_state_dict(load_file("{WEIGHTS}"))'
    use = f"from safetensors.torch import load_file\n\n{load}"
    title = str(final.config.get("run_id") or folder.resolve().name)
    notes = []
    if any(slot.per_peer for slot in slots):
        notes.append(f"The running statistics are those of peer {final.peer}, and nobody else vouches for them.")
    beside = [slot.name for slot in slots if slot.source.startswith(f"{KEPT}/")]
    if beside:
        named = ", ".join(map(code, beside[:4])) + (" and others" if len(beside) > 4 else "")
        notes.append(
            f"The signatures cover the trained parameters alone. Nobody has signed the other {len(beside)} tensors "
            f"({named}): frozen parameters, and buffers as this peer had them."
        )
    text = card(final, agreed, title=title, use=use, front={"library_name": "pytorch"}, notes=notes)
    (out / "README.md").write_text(text, encoding="utf-8")
    step = f"step {final.step}" + ("" if final.finished else " of a run that has not finished")
    print(f"{out}: {len(tensors)} tensors of {step}; signed by {signers(final.signed)}")
    return 0


def check(out: Path) -> int:
    """Say whether a majority has signed what is in an exported folder; 1 if not. Errors: ExportError, LayoutError."""
    from btard.export.card import signers
    from btard.export.folder import check as check_folder
    from btard.protocol.wire import shown

    found = check_folder(out)
    signed = found.signed
    run, head = shown(signed.run_id, 80), signed.head or "empty"
    print(f"{out}: parameters {found.digest.hex()}, of run {run}, ledger head {head}")
    beside = [*(f"tensor {name}" for name in found.unsigned), *found.files]
    if beside:
        print(f"not signed, and not checked: {shown(', '.join(beside), 400)}")
    if not signed.named:
        print("not signed: which name stands for which parameters; the run did not record that")
    if not signed.anchored:
        print(f"no proof: too few of the {signed.founders} peers of the start have signed; audit a peer's run folder")
    print(f"{'ok' if signed.enough else 'NOT ENOUGH'}: signed by {signers(signed)}")
    return 0 if signed.enough else 1


if __name__ == "__main__":
    sys.exit(main())
