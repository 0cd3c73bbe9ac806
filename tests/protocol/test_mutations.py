"""Each check is needed: without it, a row of the acceptance matrix fails.

With all checks each row comes out as it must with these seeds, too: test_acceptance.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from btard.protocol import accuse, aggregate, broadcast, claims, coin, exchange, peer, verify
from btard.protocol.config import ProtocolConfig
from btard.protocol.identity import Roster
from btard.protocol.limits import Limits
from btard.protocol.memory import remembered
from btard.protocol.record import StepRecord
from tests.protocol import matrix
from tests.protocol.matrix import Row, observe
from tests.protocol.rows import ROWS


def never(*args: Any, **kwargs: Any) -> bool:
    return False


def always(*args: Any, **kwargs: Any) -> bool:
    return True


def nothing(*args: Any, **kwargs: Any) -> Any:
    return ()


def no_fault(*args: Any, **kwargs: Any) -> None:
    return None


def unlimited(*args: Any, **kwargs: Any) -> int:
    return 2**40


CHECKS: dict[str, tuple[Any, str, Any, str]] = {
    "V1": (verify, "scalars_differ", never, "misreport(what=norm) 1 of 5"),
    "V2": (verify, "v2_violation", never, "wrong_aggregate(scale=0.1) 1 of 5"),
    "V3": (verify, "v3_violation", never, "colluding_aggregate(scale=100.0, cook=s/both) 2 of 6"),
    "CheckAveraging": (claims, "aggregate_is_right", always, "wrong_aggregate(scale=0.1) 1 of 5"),
    "validator": (peer, "validate", nothing, "zero under validators=2 1 of 5"),
    "hash of parts": (exchange, "packet_fault", no_fault, "bad_part(send=other/short/nan"),
    "hash of aggregates": (aggregate, "packet_fault", no_fault, "bad_aggregate(send=other/short/nan"),
    "coin": (coin, "coin_commitment", remembered(1)(lambda *args: bytes(32)), "wrong_reveal 1 of 5"),
    "votes": (accuse, "_carry_out", nothing, "false_accusation(kind=bad_aggregate) 1 of 5"),
    "ELIMINATE": (accuse, "_eliminate", nothing, "bad_part(send=oversize/unsigned, recipients=one) 1 of 5"),
    "possible claims": (accuse, "admissible", always, "malformed_message(how=claim_unknown_peer"),
    "duty of a validator": (claims.WrongGradient, "has_cause", always, "malformed_message(how=claim_of_validator"),
    "part of the accuser": (claims.Misreport, "has_cause", always, "malformed_message(how=claim_of_owner"),
    "what the accuser lacked": (claims.BadAggregate, "has_cause", always, "malformed_message(how=claim_not_lacked"),
    "explained exclusions": (accuse, "_expel_unexplained", nothing, "false_accusation(kind=withheld_part) 1 of 5"),
    "signatures": (Roster, "verify", always, "forgery(what=relays"),
    "equivocation proof": (broadcast, "FACES", 1, "equivocate(phase=report, shown=half/one) 1 of 5"),
    "relays": (ProtocolConfig, "rounds", 0, "selective_silence(heard_by=one/half) 2 of 6"),
    "limit of broadcasts": (Limits, "message", unlimited, "garbage(what=oversize"),
    "limit of packets": (exchange, "packet_limit", unlimited, "bad_part(send=oversize/unsigned, recipients=all)"),
    "reports on what was held": (StepRecord, "held", always, "late_aggregate(then=favour) 3 of 8"),
    "disputed lists": (peer, "settle_exclusions", nothing, "sole_sender(listed=self/fellows) 2 of 6"),
}
SEEDS = 8
assert SEEDS <= matrix.SEEDS


def failures(row: Row) -> list[str]:
    """What the first seed that fails says."""
    for seed in range(SEEDS):
        try:
            observe(row, seed)
        except AssertionError as error:
            return [str(error)]
    return []


@pytest.mark.parametrize("check", CHECKS)
def test_without_the_check_a_row_of_the_matrix_fails(check: str, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, name, replacement, label = CHECKS[check]
    row = next(row for row in ROWS if str(row).startswith(label))
    monkeypatch.setattr(owner, name, replacement)
    assert failures(row), (
        f"{row} is all the same without {check}: another check does its work, or the row tests nothing"
    )


def test_one_round_of_relays_too_few_lets_colluders_split_the_honest_peers(monkeypatch: pytest.MonkeyPatch) -> None:
    enough: Callable[..., int] = ProtocolConfig.rounds.fget  # type: ignore[attr-defined]
    monkeypatch.setattr(ProtocolConfig, "rounds", property(lambda config: max(0, enough(config) - 1)))
    row = next(row for row in ROWS if "shown=last_round) 3 of 8" in str(row))
    assert any(said in failures(row)[0] for said in ("RuntimeError: honest peers", "NoQuorum: step"))
