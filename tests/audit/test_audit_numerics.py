"""The audit on other hardware, and on other numbers of threads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from msgspec import structs

from btard.aggregation import centered_clip
from btard.audit import audit, replay
from btard.audit.numerics import numeric_platform
from btard.audit.report import CLOSE, UNCONFIRMED
from btard.protocol import verify
from btard.protocol.behaviour import Behaviour, Context
from btard.protocol.effects import Compute
from btard.protocol.messages import Claim, Report
from btard.task import QuadraticTask
from tests.audit.runs import D, attackers, record
from tests.audit.tampering import refused


class OtherHardware(QuadraticTask):
    """Computes nearly the same: all gradients are `scale` times as long."""

    def __init__(self, d: int, scale: float = 1 + 1e-4) -> None:
        super().__init__(d)
        self.scale = scale

    def gradients(self, params: torch.Tensor, requests: Sequence[Compute], out: torch.Tensor, **options: Any) -> None:
        super().gradients(params, requests, out, **options)
        out.mul_(self.scale)


def test_other_hardware_can_judge_distances_and_no_hashes(tmp_path: Path) -> None:
    for validation in ("tolerant", "exact"):
        record(tmp_path / validation, **attackers("noise"), steps=8, validation=validation)
    findings = audit(tmp_path / "tolerant", OtherHardware(D)).findings
    assert {finding.checked for finding in findings} == {UNCONFIRMED}
    refused(tmp_path / "exact", "give nobody's committed gradient", OtherHardware(D))


class Longer(Behaviour):
    """From step 2 on, its gradient is `scale` times the true one; its fellow accuses it of that once."""

    byzantine = True

    def __init__(self, scale: float) -> None:
        self.scale, self.accused = scale, False

    def active(self, step: int) -> bool:
        return step >= 2

    def gradient(self, ctx: Context, gradient: torch.Tensor) -> torch.Tensor:
        return gradient * self.scale if ctx.peer == 1 else gradient

    def accuse(self, ctx: Context, claims: tuple[Claim, ...]) -> tuple[Claim, ...]:
        if ctx.assignments.get(ctx.peer) != 1 or ctx.step < 3 or self.accused or claims:
            return claims
        self.accused = True
        return (Claim(ctx.step - 1, 1, "wrong_gradient"),)


@pytest.mark.parametrize(
    ("liar", "auditor", "says"),
    [
        (1.13, 1.02, CLOSE),  # guilty of more than one tolerance, and here it is less
        (1.13, 1.13, "is false"),  # nobody can be guilty of what is found here to the bit
        (1.10, 0.98, CLOSE),  # acquitted at less than one, and here it is more
        (1.10, 0.80, "is guilty"),  # more than two
    ],
)
def test_machines_that_differ_need_not_agree_on_a_distance(
    liar: float, auditor: float, says: str, tmp_path: Path
) -> None:
    behaviours = {1: Longer(liar), 2: Longer(liar), 3: Longer(liar)}
    record(tmp_path, behaviours, steps=15, validation="tolerant", gradient_tol=0.1, validators=3)
    if says == CLOSE:
        report = audit(tmp_path, OtherHardware(D, auditor))
        assert CLOSE in [finding.checked for finding in report.findings], [str(found) for found in report.findings]
    else:
        refused(tmp_path, says, OtherHardware(D, auditor))


def on_another_platform(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on this machine is another one than that which recorded."""
    monkeypatch.setattr(replay, "numeric_platform", lambda: "torch 9, abacus")


def test_an_audit_on_another_platform_refuses_no_gradient(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record(tmp_path, **attackers("noise"), steps=8)
    here = audit(tmp_path, QuadraticTask(D))
    on_another_platform(monkeypatch)
    assert audit(tmp_path, QuadraticTask(D)) == here, "where the bits are equal there, they say as much as here"
    report = audit(tmp_path, OtherHardware(D))
    assert [finding.entry for finding in report.findings] == [finding.entry for finding in here.findings]
    expected = f"not certain here: recorded on {numeric_platform()}; this is torch 9, abacus"
    assert all(finding.checked.startswith(expected) for finding in report.findings)


@pytest.mark.parametrize("attack", ["misreport", "wrong_aggregate"])
def test_an_audit_on_another_platform_refuses_no_aggregate(
    attack: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The misreports put all parts on trial, and judges have found them right to the bit."""
    record(tmp_path, **attackers(attack))
    here = audit(tmp_path)

    def other_bits(*arguments: Any, **settings: Any) -> Any:
        result = centered_clip(*arguments, **settings)
        return replace(result, value=torch.nextafter(result.value, torch.tensor(torch.inf)))

    monkeypatch.setattr(verify, "centered_clip", other_bits)
    if attack == "misreport":
        refused(tmp_path, "the majority voted otherwise")
    on_another_platform(monkeypatch)
    report = audit(tmp_path)
    assert report.findings == here.findings and report.summary == here.summary
    assert all("not certain here" in note for note in report.notes)
    assert bool(report.notes) == (attack == "misreport")


class Cooks(Behaviour):
    """Lies about all projections once, so that every part is put on trial."""

    byzantine = True

    def active(self, step: int) -> bool:
        return step == 2

    def report(self, ctx: Context, report: Report) -> Report:
        return structs.replace(report, products=tuple((product + 1.0,) for (product,) in report.products))


@pytest.mark.parametrize("threads", [1, 2, 4, 8])
def test_an_audit_on_any_number_of_threads_comes_to_the_bits_of_the_run(threads: int, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        record(tmp_path, {2: Cooks()}, peers=9, steps=4, d=8 * 2049, tau=10.0)
        torch.set_num_threads(threads)
        assert len(audit(tmp_path).findings) == 1
    finally:
        torch.set_num_threads(before)
