"""Each check is needed: without it, the behaviour it is there for goes unpunished in its step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from btard.protocol import accuse, aggregate, coin, exchange, peer, verify
from tests.protocol.test_acceptance import START, Row, attack_run


def never(*args: Any, **kwargs: Any) -> bool:
    return False


def nothing(*args: Any, **kwargs: Any) -> list[Any]:
    return []


CHECKS: dict[str, tuple[Any, str, Callable[..., Any], Row]] = {
    "V1": (accuse, "scalars_differ", never, Row("misreport", set(), options={"what": "norm"})),
    "V2": (verify, "v2_violation", never, Row("wrong_aggregate", set(), options={"scale": 0.1})),
    "V3": (verify, "v3_violation", never, Row("colluding_aggregate", set(), options={"scale": 100.0})),
    "validator": (peer, "validate", nothing, Row("sign_flip", set())),
    "hash of parts": (exchange, "packet_fault", lambda *a, **k: None, Row("bad_part", set())),
    "hash of aggregates": (aggregate, "packet_fault", lambda *a, **k: None, Row("bad_aggregate", set())),
    "coin": (coin, "coin_commitment", lambda *a: b"\0" * 32, Row("wrong_reveal", set())),
    "votes": (accuse, "_carry_out", nothing, Row("non_finite", set())),
}


@pytest.mark.parametrize("check", CHECKS)
def test_without_the_check_the_behaviour_goes_unpunished(check: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, name, replacement, row = CHECKS[check]
    # Validators uncover colluders sooner or later as well: V3 is about the step itself.
    steps = {"sign_flip": 40, "colluding_aggregate": 1}.get(row.attack, 3)

    def banned() -> bool:
        try:
            run, members = attack_run(row, seed=0, steps=START + steps)
        except RuntimeError:  # honest peers no longer agree: worse than unpunished
            return False
        return members <= set(run.removed)

    assert banned(), f"with all checks, {row} is banned"
    monkeypatch.setattr(module, name, replacement)
    assert not banned(), f"{row} is banned without {check}: another check does its work, or this row tests nothing"
