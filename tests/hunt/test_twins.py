"""Two copies of the correct code under one key: what they say apart is found out, and costs nobody else a place."""

from __future__ import annotations

import pytest

from scripts.hunt.cases import Case, Environment, Life, Newcomer, Program, Twin
from scripts.hunt.play import Played, play
from scripts.hunt.twins import DIFFERENCES


def run(plan: Twin, steps: int = 4, **environment: object) -> Played:
    env = Environment(**{"peers": 5, "members": (1,), "byzantine": 1, "d": 16, **environment})  # type: ignore[arg-type]
    return play(Case(7, steps, env, Program(twins=(plan,))))


def test_two_copies_that_hear_and_have_the_same_are_one_peer() -> None:
    played = run(Twin(start=1, sees="all"))
    assert (played.finding, played.kinds, played.crashes, played.steps) == (None, (), [], 4)


def test_two_copies_that_hear_half_of_the_network_each_announce_different_senders() -> None:
    played = run(Twin(start=1))
    assert played.finding is None, played.finding
    assert played.kinds == ("equivocation",)


@pytest.mark.parametrize("differ", [name for name in DIFFERENCES if name not in ("nothing", "requests")])
@pytest.mark.parametrize("to", ["one", "half", "rest"])
def test_what_two_copies_have_otherwise_shows(differ: str, to: str) -> None:
    played = run(Twin(start=2, to=to, sees="all", differ=differ))
    assert played.finding is None, played.finding
    assert played.kinds == ("equivocation",)


def test_a_copy_that_heard_of_no_newcomer_names_none() -> None:
    join = {"probation": 1, "newcomers": (Newcomer(2),)}
    assert run(Twin(sees="all", differ="nothing"), **join).kinds[:1] == ("join",)
    assert run(Twin(sees="all", differ="requests"), **join).kinds[:1] == ("equivocation",)


@pytest.mark.parametrize(
    "environment",
    [
        {"life": Life(1, 3)},
        {"validation": "tolerant"},
        {"commitments": "ideal"},
        {"recorded": True},
        {"peers": 7, "members": (2, 5), "byzantine": 2},
    ],
)
def test_twins_are_at_home_everywhere(environment: dict[str, object]) -> None:
    """In a second life, too, which begins with both of them."""
    played = run(Twin(start=2, sees="own"), steps=5, **environment)
    assert played.finding is None, played.finding
    assert "equivocation" in played.kinds
