from pathlib import Path

from btard.attacks import ATTACKS
from btard.attacks.__main__ import markdown


def test_the_documented_table_is_the_registrys() -> None:
    assert (Path(__file__).parents[2] / "docs/attacks.md").read_text() == markdown()


def test_every_attack_states_formula_and_source() -> None:
    text = markdown()
    assert text.count("- Formula: ") == text.count("- Source: ") == len(ATTACKS)
    assert "- Formula: \n" not in text and "- Source: \n" not in text
