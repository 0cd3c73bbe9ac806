"""`python -m btard.attacks`: the table of attacks, as Markdown, generated from the registry."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Sequence
from dataclasses import fields

from btard.boundary import Parser, program


def markdown() -> str:
    """The contents of `docs/attacks.md`: every attack with its formula, source and options."""
    from btard.attacks.base import Attack
    from btard.attacks.moments import MOMENTS
    from btard.attacks.registry import describe

    common = {item.name for item in fields(Attack)}  # options that all attacks have, described once
    lines = [
        "# Attacks",
        "",
        "Made by `python -m btard.attacks > docs/attacks.md`. Choose one with `--attack.name`; every attack also has",
        "`attack.start`, `attack.every` and `attack.stop`. Set options that have no key of their own with",
        "`--attack.options.NAME`.",
        "",
        "Every attack also has the option `when`: which of these steps it picks, by what it knows when it must",
        "commit. In the other steps it is honest, but does not report a fellow. Without validators, as under the",
        "rule of a server, only `always` exists. None of these choices pays:",
        "[Why an attacker cannot pick its moment](protocol.md#why-an-attacker-cannot-pick-its-moment).",
        "",
    ]
    lines += [f"- `{name}`: {inspect.getdoc(moment)}" for name, moment in MOMENTS.items()]
    titles = {"gradient": "Attacks on gradients", "protocol": "Attacks on the protocol (only under `btard`)"}
    for level, title in titles.items():
        lines += ["", f"## {title}"]
        for attack in describe():
            if attack.level != level:
                continue
            lines += ["", f"### `{attack.name}`", "", attack.summary, "", f"- Formula: {attack.formula}"]
            lines += [f"- Source: {attack.source}"]
            if attack.requires_cohort:
                lines += ["- Knows the honest gradients of the step."]
            lines += [
                f"- `{o.name}` = {o.default}: {o.help}" + (f" ({', '.join(o.choices)})" if o.choices else "")
                for o in attack.options
                if o.name not in common
            ]
    return "\n".join(lines) + "\n"


@program("the same command begins again")
def main(argv: Sequence[str] | None = None) -> int:
    """Print the page."""
    Parser(prog="python -m btard.attacks", description=__doc__).parse_args(argv)
    print(markdown(), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
