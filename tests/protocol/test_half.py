"""Gradients and aggregates as float16: one form for each tuple of values, the same verdicts, half of the bytes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from btard.audit import audit
from btard.audit.report import RECOMPUTED
from btard.calibration import propose
from btard.drivers.local import LocalDriver
from btard.protocol import limits, loads
from btard.protocol.config import ProtocolConfig
from btard.protocol.effects import Compute
from btard.protocol.half import ROUNDING, from_half, is_sound, to_half
from btard.protocol.hashing import stream
from btard.protocol.identity import Identity
from btard.protocol.record import Settled, settings_digest, to_json
from btard.protocol.signed import Packet, tensor_of
from btard.protocol.split import Split
from btard.protocol.wire import Malformed
from btard.task import QuadraticTask
from tests.audit.runs import attackers, record
from tests.protocol.matrix import observe
from tests.protocol.rows import ROWS

LARGEST = float(np.finfo(np.float32).max)
BITS = st.lists(st.integers(0, 2**16 - 1), min_size=1, max_size=6)
HALVED = Split(20, 3, ("part", "aggregate"))
FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)


def bits(body: torch.Tensor) -> list[int]:
    return body.view(torch.int16).tolist()


@given(st.lists(FLOATS, min_size=1, max_size=8))
def test_any_finite_values_have_one_form_that_is_near_them(values: list[float]) -> None:
    x = torch.tensor(values, dtype=torch.float32)
    body = to_half(x)
    if not is_sound(body):
        assert float(x.abs().max()) > LARGEST * (1 - ROUNDING), "only what rounds to infinity has none"
        return
    back = from_half(body)
    largest = float(x.abs().max())
    assert body.dtype is torch.float16 and body.numel() == len(x) + 1 and torch.isfinite(back).all()
    assert bits(to_half(back)) == bits(body), "who passes it on sends the same bytes"
    room = ROUNDING * x.abs().double() + 2.0**-38 * largest + 2.0**-124
    assert ((back.double() - x.double()).abs() <= room).all()


@given(st.integers(-130, 110) | st.sampled_from([0.5, float("nan"), float("inf"), 6e4]), BITS)
def test_a_body_of_hostile_bytes_is_refused_or_is_the_one_form_of_what_it_says(k: float, entries: list[int]) -> None:
    body = torch.from_numpy(np.array([0, *entries], dtype=np.uint16).view(np.float16).copy())
    body[0] = k
    if is_sound(body):
        values = from_half(body)
        assert torch.isfinite(values).all() and bits(to_half(values)) == bits(body)


@pytest.mark.parametrize(
    "entries", [[0], [0x8000], [0x7400], [1], [0x83FF], [0x77FF, 1], [0xF800], [0x7C00], [0, 0x7E00]], ids=str
)
def test_no_exponent_makes_a_second_form(entries: list[int]) -> None:
    """All whole numbers in front of these entries, and some others: integers drawn at random have no -0.0."""
    bodies = torch.from_numpy(np.array([[k, *entries] for k in range(2**16)], dtype=np.uint16).view(np.float16))
    exponents = bodies[:, 0].float()
    near = (exponents.frac() == 0) & (exponents.abs() < 2**8)
    assert not any(map(is_sound, bodies[~near][:: 2**7]))
    sound = [body for body in bodies[near] if is_sound(body)]
    assert all(bits(to_half(from_half(body))) == bits(body) for body in sound)
    assert len({tuple(from_half(body).view(torch.int32).tolist()) for body in sound}) == len(sound)


@pytest.mark.parametrize("x", [[0.0, -0.0], [1e-40, 0.0], [2.0**-125], [3e38, 1.0], [-1.0, 1 - 2.0**-13]])
def test_zeros_denormals_and_large_values_have_a_form(x: list[float]) -> None:
    body = to_half(torch.tensor(x))
    assert is_sound(body) and bits(to_half(from_half(body))) == bits(body)


@pytest.mark.parametrize("x", [[float("nan"), 1.0], [float("inf")], [LARGEST]])
def test_what_is_not_finite_or_rounds_to_infinity_has_none(x: list[float]) -> None:
    assert not is_sound(to_half(torch.tensor(x)))


def test_a_packet_has_to_come_in_the_form_that_was_agreed_on() -> None:
    def packet(body: Any) -> Packet:
        return Packet("part", 0, 0, 0, body, b"")

    x = torch.tensor([0.5, -3.0])
    assert torch.equal(tensor_of(packet(to_half(x)), 2, halved=True), x)
    shifted = to_half(x)
    shifted[0] -= 1
    shifted[1:] /= 2  # the same values in another form
    assert torch.equal(from_half(shifted), x)
    for body in (x, to_half(x)[1:], shifted, to_half(x).float(), b"\0" * 6):
        with pytest.raises(Malformed):
            tensor_of(packet(body), 2, halved=True)
    with pytest.raises(Malformed, match=r"torch\.float32"):
        tensor_of(packet(to_half(x)), 3)


def test_limits_and_loads_follow_the_form() -> None:
    for split, part, aggregate in (
        (Split(20, 3), 28, 28),
        (Split(20, 3, ("part",)), 16, 28),
        (HALVED, 16, 16),
    ):
        assert (split.nbytes(0, "part"), split.nbytes(0, "aggregate")) == (part, aggregate)
        assert split.nbytes(0) == max(part, aggregate), "whatever kind it is"
        body = split.body("part", torch.ones(7))
        assert body.nbytes == part and split.body("aggregate", torch.ones(7)).nbytes == aggregate
        made = LocalDriver(ProtocolConfig(peers=3, validators=0), QuadraticTask(20)).peers[0].begin()
        made.split = split
        overhead = limits.packet_limit(made, [0]) // 2 - max(part, aggregate)
        assert loads.packets(made, [0], "part") == part + overhead
        assert limits.packet_limit(made, [0], "aggregate") == 2 * (aggregate + overhead)
        assert limits.answer_limit(made, [0]) == 2 * aggregate + 256


def test_a_run_with_float32_is_what_it_was_before_there_was_a_choice() -> None:
    plain = ProtocolConfig(peers=4)
    assert settings_digest(plain) != settings_digest(replace(plain, wire="float16"))
    settled = Settled(0, (), {}, b"", split=Split(20, 3))
    assert to_json(settled, Settled)["split"] == {"d": 20, "k": 3}
    with pytest.raises(ValueError, match="wire must be float32, float16-parts or float16, got 'half'"):
        ProtocolConfig(peers=4, wire="half")  # type: ignore[arg-type]


class OtherMachine(QuadraticTask):
    """Each entry of the gradient is off by some 2^-11 of itself, as no two machines' are."""

    def __init__(self, d: int, peer: int) -> None:
        super().__init__(d)
        self.peer = peer

    def gradients(self, params: torch.Tensor, requests: Sequence[Compute], out: torch.Tensor, **_: Any) -> None:
        super().gradients(params, requests, out)
        noise = torch.from_numpy(stream("machine", self.peer).standard_normal(out.shape, dtype=np.float32))
        out.mul_(1 + 2.0**-11 * noise.clamp_(-1, 1))


@pytest.mark.parametrize("wire", ["float16", "float16-parts"])
def test_tolerances_have_room_for_rounding(wire: Any) -> None:
    """Machines that are 2^-10 apart are nearly 2^-9 apart once their gradients were rounded, and nobody is accused."""
    least: dict[str, Any] = {"wire": wire, "gradient_tol": 2.0**-9, "validation": "tolerant"}
    driver = LocalDriver(
        ProtocolConfig(peers=5, byzantine=1, **least),
        QuadraticTask(500),
        tasks={i: OtherMachine(500, i) for i in range(5)},
    )
    for _ in range(6):
        assert not driver.step(torch.ones(500)).removed
    with pytest.raises(ValueError, match=rf"gradient_tol must be >= 0\.00195312 with wire {wire}, got 5e-06"):
        ProtocolConfig(peers=5, **{**least, "gradient_tol": 5e-6})
    with pytest.raises(ValueError, match=r"cosine_tol must be >= 1\.90735e-06 with wire"):
        ProtocolConfig(peers=5, cosine_tol=1e-6, **least)
    ProtocolConfig(peers=5, **{**least, "gradient_tol": 5e-6, "validation": "exact"})
    assert propose([1e-6] * 30, 10, ProtocolConfig(peers=5, **least).rounding).tolerance == 0.002
    assert propose([0.0] * 30, 10, 2.0**-10).tolerance == 0, "equal bits are rounded alike"


CHOSEN = (
    ("sign_flip", {}),
    ("wrong_aggregate", {"scale": 0.1}),
    ("colluding_aggregate", {"scale": 100.0}),
    ("bad_part", {}),
    ("bad_aggregate", {}),
    ("withheld_aggregate", {}),
    ("favoured_holder", {}),
    ("misreport", {}),
    ("false_accusation", {}),
)
PLAYED = [
    next(row for row in ROWS if row.attack == name and options.items() <= dict(row.options).items())
    for name, options in CHOSEN
]


@pytest.mark.parametrize("validation", ["exact", "tolerant"])
@pytest.mark.parametrize("row", PLAYED, ids=lambda row: row.attack)
def test_attacks_end_as_with_float32(row: Any, validation: str) -> None:
    for seed in range(2):
        observe(replace(row, settings={**row.settings, "wire": "float16", "validation": validation}), seed)


def test_honest_peers_train_for_half_of_the_bytes_and_nobody_is_suspected() -> None:
    sent, ends = {}, {}
    for wire in ("float32", "float16-parts", "float16"):
        driver = LocalDriver(ProtocolConfig(peers=5, byzantine=1, wire=wire), QuadraticTask(40_000))  # type: ignore[arg-type]
        params = torch.ones(40_000)
        for _ in range(6):
            result = driver.step(params)
            params = params - 0.1 * result.gradient
            assert not result.removed and not result.account.accused
        sent[wire], ends[wire] = result.sent[result.workers[0]], params
    apart = float((ends["float32"] - ends["float16"]).norm() / ends["float32"].norm())
    assert 0 < apart < 1e-3
    assert 0.5 < sent["float16"] / sent["float32"] < 0.52 and 0.75 < sent["float16-parts"] / sent["float32"] < 0.8


@pytest.mark.parametrize("commitments", ["hashed", "ideal"])
@torch.inference_mode(False)  # ideal commitments look at the versions of tensors
def test_a_resumed_run_with_a_newcomer_goes_on_to_the_same_bits(commitments: Any) -> None:
    config = ProtocolConfig(peers=5, byzantine=1, wire="float16", probation=2, heal=4, run_id="half")

    def made() -> LocalDriver:
        behaviours = attackers("sign_flip", count=1, peers=5)
        return LocalDriver(config, QuadraticTask(31), commitments=commitments, **_cohort(behaviours))

    def go(driver: LocalDriver, params: torch.Tensor, steps: range) -> torch.Tensor:
        for step in steps:
            if step == 2:
                driver.join(Identity.from_seed("newcomer"))
            result = driver.step(params)
            params = params - 0.1 * result.gradient if result.back_to is None else result.state["parameters"].clone()
        return params

    whole = made()
    expected = go(whole, torch.ones(31), range(14))
    assert 5 in whole.peers and any(entry.kind == "wrong_gradient" for entry in whole.peers[0].ledger.entries)
    first, second = made(), made()
    params = go(first, torch.ones(31), range(4))
    state, tensors = first.state()
    second.join(Identity.from_seed("newcomer"))
    second.restore(json.loads(json.dumps(state)), {name: x.clone() for name, x in tensors.items()}, life=None)
    assert torch.equal(go(second, params, range(4, 14)), expected)
    assert second.peers[0].ledger.head == whole.peers[0].ledger.head


def _cohort(found: dict[str, Any]) -> dict[str, Any]:
    return {"behaviours": found["behaviours"], "collusion": found["collusion"]}


@pytest.mark.parametrize("attack", ["sign_flip", "misreport", "wrong_aggregate", "bad_part"])
def test_a_run_is_audited(attack: str, tmp_path: Path) -> None:
    record(tmp_path, **attackers(attack), steps={"sign_flip": 20}.get(attack, 6), wire="float16")
    bare, full = audit(tmp_path), audit(tmp_path, QuadraticTask(53))
    assert {finding.entry.accused for finding in full.findings} & {1, 2}
    assert "attested by" in bare.summary and bare.summary == full.summary
    assert all((finding.checked == RECOMPUTED) == (attack == "sign_flip") for finding in full.findings)
