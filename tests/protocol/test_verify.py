"""V1, V2, V3 and CheckAveraging: honest work passes whatever the others sent, wrong work does not."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from btard.aggregation import centered_clip
from btard.drivers.local import LocalDriver
from btard.protocol import verify
from btard.protocol.config import ProtocolConfig
from btard.protocol.directions import direction_blocks, directions, part_directions
from btard.protocol.hashing import UNIFORM_SCALE
from btard.protocol.messages import AnnouncedPart, Report
from btard.protocol.record import StepRecord
from btard.protocol.scalars import Scalars, row_scalars, scalars
from btard.protocol.seat import ACCUSE, CONVICT
from btard.protocol.split import Split
from btard.protocol.verify import (
    Tally,
    aggregate_is_right,
    alarms,
    far_off,
    scalars_differ,
    v2_violation,
    v3_violation,
)
from btard.task import QuadraticTask

HOSTILE = ["huge", "largest", "denormal", "copies", "mirrored", "zero", "honest mean", "cancelling", "collinear"]


def hostile_rows(kind: str, x: np.ndarray, count: int, rng: np.random.Generator) -> None:
    """Overwrite the first `count` rows of x [k, p] by what a hostile peer may send; the rest is honest."""
    mean = x[count:].mean(0)
    spread = float(np.abs(x[count:] - mean).mean()) + 1e-30
    for row in range(count):
        sign = 1 if row % 2 else -1
        x[row] = {
            "huge": lambda: rng.standard_normal(x.shape[1]) * 10.0 ** rng.uniform(0, 30),
            "largest": lambda: 3e38 * np.sign(rng.standard_normal(x.shape[1])),
            "denormal": lambda: rng.standard_normal(x.shape[1]) * 1e-42,
            "copies": lambda: x[-1],
            "mirrored": lambda row=row: 2 * mean - x[len(x) - 1 - row],
            "zero": lambda: np.zeros(x.shape[1]),
            "honest mean": lambda: mean,
            "cancelling": lambda sign=sign: mean + sign * 1e6 * spread,
            "collinear": lambda row=row: x[-1] + (row + 1) * (x[-2] - x[-1]),
        }[kind]()


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    kind=st.sampled_from(HOSTILE),
    k=st.integers(3, 16),
    p=st.sampled_from([1, 2, 50, 777]),
    exponent=st.floats(-8, 4),
    common=st.floats(-3, 3),
    tau=st.sampled_from([1e-2, 0.1, 1.0, 10.0, 1e3, float("inf")]),
    seed=st.integers(0, 2**31),
)
def test_no_honest_aggregator_is_convicted_for_what_it_was_sent(
    kind: str, k: int, p: int, exponent: float, common: float, tau: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    scale = 10.0**exponent
    x = scale * (10.0**common * rng.standard_normal(p) + rng.standard_normal((k, p)))
    hostile_rows(kind, x, (k - 1) // 2, rng)
    parts = torch.from_numpy(x.astype(np.float32))
    config = ProtocolConfig(peers=k)
    value = centered_clip(parts, tau * scale, tol=config.tol).value
    for validation in ("exact", "tolerant"):
        config = ProtocolConfig(peers=k, validation=validation)  # type: ignore[arg-type]
        assert aggregate_is_right(config, value, parts, tau * scale), validation


@pytest.mark.parametrize(("wire", "quantum"), [("float32", 2.0**-149), ("float16", 2.0**-124)])
def test_no_honest_owner_of_next_to_nothing_is_convicted_or_tried(wire: Any, quantum: float) -> None:
    """There rounding is absolute: a mean between two numbers goes one way or the other, by the machine."""
    config = ProtocolConfig(peers=16, byzantine=7, wire=wire, validation="tolerant")
    cut = Split(64, 1, config.halved)
    for seed in range(30):
        x = torch.zeros(14, 64)
        x[:7] = quantum * torch.from_numpy(np.random.default_rng(seed).integers(1, 60, (7, 1))).float()
        mean = x.double().mean(0) / quantum
        for theirs in (mean.floor().mul(quantum).float(), mean.ceil().mul(quantum).float()):
            assert torch.equal(cut.travelled("aggregate", theirs), theirs)
            assert aggregate_is_right(config, theirs, x, 1.0)
        mine = centered_clip(x, 1.0, tol=config.tol).value
        record = make_record(cut.travelled("aggregate", mine), 14, byzantine=7)
        record.split, record.reports = cut, make_reports(config, record, x)
        assert not alarms(config, record, margin=ACCUSE)


def make_record(value: torch.Tensor, k: int, tau: float = 1.0, byzantine: int = 0) -> StepRecord:
    """A step of k workers, `byzantine` of which may lie, and one part, owned by worker 0, with aggregate `value`."""
    record = StepRecord(3, tuple(range(k)), {}, b"coin", tau, workers=tuple(range(k)), split=Split(value.numel(), 1))
    record.owners, record.coin = (0,), b"c" * 32
    record.announced = {0: AnnouncedPart(0, b"h" * 32, tuple(range(k)))}
    record.aggregates, record.here, record.byzantine = {0: value}, record.active, byzantine
    return record


def make_reports(config: ProtocolConfig, record: StepRecord, x: torch.Tensor) -> dict[int, Report]:
    value = record.aggregates[0]
    z = directions(record.coin, 0, value.numel(), config.directions)
    said = {i: scalars(row, value, z, record.tau) for i, row in enumerate(x)}
    return {i: Report((norm,), (products,), sizes=(size,)) for i, (norm, products, size) in said.items()}


def test_equal_bits_acquit_in_mode_tolerant_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Should the solver end above the floor, its bits are right, and nothing else as bad as they are."""
    x = torch.from_numpy(np.random.default_rng(8000).standard_normal((7, 2)).astype(np.float32))
    off = centered_clip(x, 1.0).value + 1e-3
    monkeypatch.setattr(verify, "centered_clip", lambda *_, **__: SimpleNamespace(value=off))
    config = ProtocolConfig(peers=8, validation="tolerant")
    assert aggregate_is_right(config, off.clone(), x, 1.0)
    assert not aggregate_is_right(config, off + 1e-6, x, 1.0)
    assert not aggregate_is_right(config, off.clone(), x, 1.0, margin=0.0), "an auditor's bits may be others"


@pytest.mark.parametrize("tau", [0.05, 1.0, 20.0, float("inf")])
@pytest.mark.parametrize("p", [3, 1000, 100_000])
def test_v2_passes_the_honest_and_catches_a_shift_of_a_thousandth(tau: float, p: int) -> None:
    generator = torch.Generator().manual_seed(p)
    x = torch.randn(15, p, generator=generator) + 3 * torch.randn(p, generator=generator)
    config = ProtocolConfig(peers=15, directions=4)
    honest = centered_clip(x, tau, tol=config.tol).value
    record = make_record(honest, 15, tau)
    reports = make_reports(config, record, x)
    assert not v2_violation(config, record, Tally(record, reports), 0, margin=CONVICT)
    record.reports = reports
    assert not alarms(config, record, margin=ACCUSE)
    typical = float(torch.linalg.vector_norm(x - honest, dim=1).median())
    # A shift moves the clipped sum by at least the share of it that stays after clipping, tau / typical.
    shift = torch.randn(p, generator=generator)
    wrong = honest + 1e-3 * typical * shift / shift.norm()
    record = make_record(wrong, 15, tau)
    record.reports = make_reports(config, record, x)
    assert v2_violation(config, record, Tally(record, record.reports), 0, margin=ACCUSE)
    assert alarms(config, record, margin=ACCUSE) == {0}
    assert not aggregate_is_right(config, wrong, x, tau)


@pytest.mark.parametrize("exponent", [-149, -140, -126, -60, 0, 60, 120])
def test_v2_holds_for_every_magnitude(exponent: int) -> None:
    """Zeros, denormals and huge values: the tolerance neither vanishes nor becomes infinite, and a shift is seen."""
    config, tau = ProtocolConfig(peers=7, directions=4), float("inf")
    x = torch.randn(7, 50, generator=torch.Generator().manual_seed(3)).double().mul(2.0**exponent).float()
    x[:, :5] = 0
    record = make_record(centered_clip(x, tau, tol=config.tol).value, 7, tau, byzantine=2)
    record.reports = make_reports(config, record, x)
    assert not alarms(config, record, margin=CONVICT)
    if exponent > -126:
        record.aggregates = {0: record.aggregates[0] + x.abs().max()}
        record.reports = make_reports(config, record, x)
        assert 0 in alarms(config, record, margin=ACCUSE)


def test_liars_with_norms_of_their_choice_do_not_widen_v2() -> None:
    """The unit is the (b + 1)-th largest norm, so that b huge ones do not hide an error, nor do b zeros."""
    config, byzantine = ProtocolConfig(peers=7, directions=4), 3
    x = torch.randn(7, 50, generator=torch.Generator().manual_seed(4))
    wrong = centered_clip(x, 1.0, tol=config.tol).value + 0.01
    for said, fires in ((1e30, True), (0.0, True)):
        record = make_record(wrong, 7, float("inf"), byzantine)
        reports = make_reports(config, record, x)
        record.reports = {
            i: Report((said,) if i < byzantine else report.norms, report.products, sizes=report.sizes)
            for i, report in reports.items()
        }
        assert v2_violation(config, record, Tally(record, record.reports), 0, margin=ACCUSE) == fires


@pytest.mark.parametrize("byzantine", [0, 1, 2])
def test_v3_fires_once_all_honest_workers_may_be_far_away(byzantine: int) -> None:
    record, config = make_record(torch.zeros(4), 5, byzantine=byzantine), ProtocolConfig(peers=5, delta_max=50.0)

    def fires(far: int) -> bool:
        norms = {i: Report((100.0 if i < far else 1.0,), ((0.0,),), sizes=(1.0,)) for i in range(5)}
        return v3_violation(config, record, Tally(record, norms), 0)

    assert not fires(5 - byzantine - 1)
    assert fires(5 - byzantine)


def test_delta_max_follows_the_size_of_honest_gradients() -> None:
    """Ten times the (b + 1)-th largest size, which is at most an honest one, and what liars can pull."""
    sizes = {i: Report((1.0,), ((0.0,),), sizes=(size,)) for i, size in enumerate((1e30, 2.0, 3.0, 1.0, 0.5))}
    record = make_record(torch.zeros(6), 5, byzantine=1)
    assert far_off(ProtocolConfig(peers=5), 4.0, Tally(record, sizes), 0) == 34.0
    assert far_off(ProtocolConfig(peers=5, delta_max=7.0), 4.0, Tally(record, sizes), 0) == 7.0


def test_v1_tolerates_rounding_and_nothing_else() -> None:
    tol, true = 1e-5, Scalars(2.0, (0.3,), 5.0)
    assert not scalars_differ(Scalars(2.0 * (1 + 1e-6), (0.3 + 1e-6,), 5.0), true, 1.0, tol)
    assert scalars_differ(true._replace(norm=2.0 * (1 + 2e-5)), true, 1.0, tol)
    assert scalars_differ(true._replace(products=(0.3 + 2e-4,)), true, 1.0, tol)
    assert scalars_differ(true._replace(products=(-0.3,)), true, 1.0, tol)
    assert scalars_differ(true._replace(size=5.0 * (1 + 2e-5)), true, 1.0, tol)
    assert not scalars_differ(true._replace(size=5.0 * (1 + 5e-6)), true, 1.0, tol)
    nothing = Scalars(0.0, (0.0,), 0.0)
    assert not scalars_differ(nothing, nothing, 1.0, tol)
    assert scalars_differ(nothing._replace(norm=1e-30), nothing, 1.0, tol)


@pytest.mark.parametrize("block", [1, 50, 200, 10**9])
def test_many_directions_are_drawn_a_few_at_a_time(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand of them take 500 times the memory of a part: of any that a small file shows."""
    parts, count, size = 3, 7, 13
    whole = part_directions(b"coin", 2, 2 + parts, size, count)
    monkeypatch.setattr("btard.protocol.directions.BLOCK", block)
    pieces = list(direction_blocks(b"coin", 2, 2 + parts, size, count))
    assert torch.equal(torch.cat(pieces, 1), whole) and whole.shape == (parts, count, size)
    assert max(piece.numel() for piece in pieces) <= max(block, parts * size)


def test_reports_do_not_depend_on_how_many_directions_are_drawn_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    config = ProtocolConfig(peers=5, directions=9, tau=1.0)

    def reports() -> list[dict[int, Report]]:
        driver = LocalDriver(config, QuadraticTask(53))
        driver.step(torch.ones(53))
        return [peer.current.reports for peer in driver.peers.values()]

    whole = reports()
    monkeypatch.setattr("btard.protocol.directions.BLOCK", 30)
    assert reports() == whole and whole[0]


def test_scalars_of_huge_parts_are_finite() -> None:
    ones = torch.ones(1, 9, dtype=torch.int16)
    norm, (product,), size = scalars(torch.full((9,), 3e38), torch.zeros(9), ones, 2.0)
    assert norm == size == pytest.approx(9e38, rel=1e-6)
    # <1, g> tau / ||g|| = 9 * 3e38 * 2 / 9e38
    assert product == pytest.approx(UNIFORM_SCALE * 2.0 * 3.0, rel=1e-6)


@pytest.mark.parametrize("rows", [1, 15])
def test_scalars_of_long_parts_are_exact_whatever_their_tails(rows: int) -> None:
    # Gradients have a few entries far larger than the rest: added up one by one in float32 these swallow the rest.
    rng, p = np.random.default_rng(0), 3 * 2**20 // rows
    x = torch.from_numpy(np.exp(3 * rng.standard_normal((rows, p))) * rng.choice([-1.0, 1.0], (rows, p))).float()
    value = torch.from_numpy(rng.standard_normal((1, p))).float()
    z = directions(b"coin", 0, p, 2).unsqueeze(0)
    gap = x.double() - value.double()
    for row, (norm, products, size) in enumerate(row_scalars(x, value, z, float("inf"))):
        true = float(torch.linalg.vector_norm(gap[row]))
        assert norm == pytest.approx(true, rel=3e-7)
        assert size == pytest.approx(float(torch.linalg.vector_norm(x[row].double())), rel=3e-7)
        wanted = UNIFORM_SCALE * torch.mv(z[0].double(), gap[row])
        assert np.abs(np.array(products) - wanted.numpy()).max() < 3e-6 * true


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"peers": 4, "byzantine": 2}, "byzantine must be >= 0 and < peers / 2"),
        ({"peers": 2, "validators": 1}, r"validators must be >= 0 and at most \(peers - 1\) / 2 = 0, got 1"),
        ({"peers": 4, "tau": 0.0}, "tau must be > 0"),
        ({"peers": 4, "tau": float("nan")}, "tau must be > 0"),
        ({"peers": 4, "tol": 1e-3}, "residual_tol must be finite and >= tol = 0.001, got 1e-05"),
        ({"peers": 4, "clip_lambda": -1.0}, "clip_lambda"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings_: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ProtocolConfig(**settings_)  # type: ignore[arg-type]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("peers", "byzantine", "validators"), [(15, 7, 1), (16, 7, 2), (3, 1, 1)])
def test_workers_that_may_have_no_honest_majority_are_warned_of(peers: int, byzantine: int, validators: int) -> None:
    with pytest.warns(UserWarning, match="liars can have parts skipped"):
        ProtocolConfig(peers=peers, byzantine=byzantine, validators=validators)
    more = 2 * byzantine + validators + 1
    assert ProtocolConfig(peers=more, byzantine=byzantine, validators=validators).byzantine == byzantine
