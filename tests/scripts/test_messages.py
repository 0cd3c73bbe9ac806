"""The messages that docs/troubleshooting.md and docs/swarm.md quote are those that the programs say."""

import os
import re
from pathlib import Path

import pytest

from btard.boundary import ADVICE
from tests.messages import ROOT, quoted, sources, unknown

DOCS = ROOT / "docs"


@pytest.mark.parametrize("name", ["troubleshooting.md", "swarm.md", "running.md"])
def test_every_quoted_message_is_said(name: str) -> None:
    text = (DOCS / name).read_text(encoding="utf-8")
    text = "".join(section for section in re.split(r"(?m)^(?=## )", text) if "| message |" in section)
    said = sources("albert", "btard", "resnet", "scripts/common.sh")
    said += [f"{os.strerror(number)}; {advice}" for number, advice in ADVICE.items()]
    assert unknown(quoted(text), said) == []


def test_a_message_that_nobody_says_is_found(tmp_path: Path) -> None:
    program = """
        raise Error(
            f"only {n} of {m} {'have' if m > 1 else 'has'} come "
            "today; wait"
        )
    """
    (tmp_path / "program.py").write_text(program, encoding="utf-8")
    said = sources(str(tmp_path))
    assert unknown(["only ... of ... have come today"], said) == []
    wrong = ["only ... have gone", "have come ... only", "..."]
    assert unknown(wrong, said) == wrong


def test_quotes() -> None:
    text = "| message | do |\n| --- | --- |\n| `a ... b`, `c \\| d` | `not this` |\nand `not that`\n"
    assert list(quoted(text)) == ["a ... b", "c | d"]
