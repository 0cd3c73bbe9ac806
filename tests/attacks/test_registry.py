"""Names, options, descriptions, and one-line errors."""

from __future__ import annotations

import dataclasses

import pytest

from btard.attack_names import GRADIENT, PROTOCOL
from btard.attacks import ATTACKS, Attack, Collusion, describe, make_attack
from btard.protocol.behaviour import Behaviour

COLLUSION = Collusion(frozenset({1, 2}), 5)


def test_the_promised_names_are_there():
    assert list(ATTACKS) == [*GRADIENT, *PROTOCOL]
    assert [name for name, attack in ATTACKS.items() if attack.level == "gradient"] == list(GRADIENT)
    assert all(attack.name == name for name, attack in ATTACKS.items())


@pytest.mark.parametrize("name", ATTACKS)
def test_every_attack_can_be_made_with_its_defaults_and_hooks_into_the_behaviour(name):
    attack = make_attack(name, COLLUSION)
    assert isinstance(attack, Attack) and attack.byzantine and attack.level in ("gradient", "protocol")
    lineage = ATTACKS[name].__mro__
    own = set().union(*map(vars, lineage[: lineage.index(Attack)]))
    assert any(hook in own for hook in vars(Behaviour) if hook != "active" and not hook.startswith("_"))
    with pytest.raises(TypeError):
        type(attack)(5)  # options go by keyword


def test_the_description_comes_from_the_classes():
    rows = {row.name: row for row in describe()}
    assert list(rows) == list(ATTACKS)
    for name, row in rows.items():
        assert row.summary and row.formula and row.source, name
        assert [option.name for option in row.options][-4:] == ["start", "every", "stop", "when"]
        assert all(option.help for option in row.options)
        declared = {field.name for field in dataclasses.fields(ATTACKS[name])} - {"collusion"}
        assert {option.name for option in row.options} == declared
    assert rows["sign_flip"].formula == "-scale * g_i"
    assert rows["sign_flip"].options[0].default == 1000.0
    assert rows["min_max"].options[0].choices == ("std", "unit", "sign")
    assert rows["ipm"].requires_cohort and not rows["zero"].requires_cohort


def test_start_every_and_stop():
    attack = make_attack("zero", COLLUSION, start=3, every=4, stop=12)
    assert [step for step in range(20) if attack.active(step)] == [3, 7, 11]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "sing_flip",
            {},
            "unknown attack 'sing_flip', did you mean 'sign_flip'?; there are sign_flip, random_direction",
        ),
        ("%", {}, "unknown attack '%'; there are"),
        ("ipm", {"epsilonn": 1}, "attack ipm has no option 'epsilonn', did you mean 'epsilon'?; it has epsilon, start"),
        ("zero", {"collusion_": 1}, "attack zero has no option 'collusion_'; it has start, every, stop, when"),
        ("ipm", {"epsilon": "0.1"}, "attack ipm: epsilon must be float, got '0.1'"),
        ("ipm", {"epsilon": True}, "attack ipm: epsilon must be float, got True"),
        ("ipm", {"epsilon": -1}, "attack ipm: epsilon must be >= 0, got -1"),
        ("sign_flip", {"scale": float("nan")}, "attack sign_flip: scale must be >= 0, got nan"),
        ("alie", {"z": float("inf")}, "attack alie: z must be finite, got inf"),
        ("rop", {"lam": 1.5}, "attack rop: lam must be >= 0 and <= 1, got 1.5"),
        ("min_max", {"perturbation": "var"}, "perturbation must be one of std, unit, sign, got 'var'"),
        ("delayed_gradient", {"delay": 0}, "attack delayed_gradient: delay must be >= 1, got 0"),
        ("delayed_gradient", {"delay": 2.5}, "attack delayed_gradient: delay must be int, got 2.5"),
        ("zero", {"every": 0}, "attack zero: every must be >= 1, got 0"),
        ("zero", {"start": -1}, "attack zero: start must be >= 0, got -1"),
        ("zero", {"start": 4, "stop": 4}, "attack zero: stop must be > start, got 4 and start 4"),
        (
            "zero",
            {"when": "never"},
            "attack zero: when must be one of always, checked, covered, seldom, in_turn, got 'never'",
        ),
        ("zero", {"stop": "soon"}, "attack zero: stop must be int or none, got 'soon'"),
    ],
)
def test_errors_are_one_clear_line(name, options, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the text is compared below
        make_attack(name, COLLUSION, **options)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_integer_will_do_for_a_number():
    assert make_attack("ipm", COLLUSION, epsilon=2).epsilon == 2
