"""The card of an exported model: what it was trained on, who signed it, and how anybody can check that."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from btard.export.final import Final, Signed
from btard.protocol.wire import shown

LONGEST = 1000
"""Characters of somebody's words."""
PROOF = "proof"
"""The folder next to the model with the files that prove what the card says."""


def card(
    final: Final,
    agreed: Mapping[str, Any],
    *,
    title: str,
    use: str,
    front: Mapping[str, str],
    notes: Sequence[str] = (),
) -> str:
    """README.md of an exported model, in Markdown.

    `agreed`: what peers had alike beside their settings; `use`: Python that loads the model; `front`: what the page
    says of itself to programs, in its first lines; `notes`: lines on what it was measured at.
    """
    config = final.config
    peers, byzantine = plain(config.get("peers") or ""), plain(config.get("byzantine"))
    state = f"{final.step} steps" if final.finished else f"{final.step} steps, of a run that had not finished"
    rows = [
        ("trained for", state),
        *([("peers", f"{peers} at the start, up to {byzantine} of them Byzantine")] if peers else []),
        ("removed", plain(", ".join(final.removed)) or "nobody"),
        *((plain(name), code(value)) for name, value in sorted(agreed.items())),
        ("parameters", f"{final.tensors['parameters'].numel()}, digest `{final.digest.hex()}`"),
        ("ledger head", f"`{final.signed.head or 'empty'}`" if final.signed else "not signed"),
        ("signed by", signers(final.signed)),
        *(
            [("not signed", "which name stands for which parameters")]
            if final.signed and not final.signed.named
            else []
        ),
    ]
    if final.vouched_by:
        rows.append(("vouched for by", f"peers {', '.join(map(str, final.vouched_by))}, optimizer included"))
    lines = ["---", *(f"{name}: {value}" for name, value in front.items()), "tags:", "- btard", "---", ""]
    lines += [f"# {plain(title)}", ""]
    lines += ["Trained by peers that need not trust each other (BTARD, arXiv 2106.11257).", ""]
    lines += ["| | |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in rows), ""]
    lines += [f"- {note}" for note in notes] + ([""] if notes else [])
    lines += ["## Use", "", "```python", use.strip(), "```", "", "## Check", ""]
    if final.signed is None:
        lines += ["Nobody has signed these parameters: the card is all that says where they come from.", ""]
    else:
        lines += [
            "```bash",
            f"python -m btard.export --check FOLDER   # this folder: digest, ledger and signatures, from {PROOF}/",
            "python -m btard.audit RUN_DIR           # a peer's run folder: every verdict, from its evidence",
            "```",
            "",
            f"Keys are in `{PROOF}/roster.json`. Whether they are those of peers you trust, only these can tell you.",
            "",
        ]
    return "\n".join(lines)


def plain(text: object) -> str:
    """Somebody's words as Markdown that shows them in one line, and does nothing else: nothing in them means anything.

    Not even what hosts read into it, such as links in bare addresses.
    """
    return re.sub(r"([!-'*+./:-@\[-`{-~])", r"\\\1", shown(text, LONGEST))


def code(text: object) -> str:
    """The same in a fixed width; what would end it is left out."""
    return f"`{re.sub('[`|]', '', shown(text, LONGEST))}`"


def signers(signed: Signed | None) -> str:
    """Who has signed, in words."""
    if signed is None:
        return "nobody"
    both = [peer for peer in signed.by if peer in signed.left]
    return f"{len(both)} of the {len(signed.left)} peers that were left: {', '.join(map(str, both)) or 'none'}"
