"""A run that a minority of its peers has forged, out of what the others really said, is no run to the auditor."""

from __future__ import annotations

from pathlib import Path

import pytest

from btard.attacks import make_attack
from btard.audit import AuditError, audit
from btard.audit.proof import Proof
from btard.audit.report import UNCERTAIN
from btard.protocol.collusion import Collusion
from btard.protocol.config import ProtocolConfig
from btard.protocol.ledger import still_byzantine
from btard.protocol.messages import FALSE_CLAIM, Claim, Claims
from btard.task import QuadraticTask
from tests.audit.forgery import keys, replayed, saying, transcripts, voting, without, write_run
from tests.audit.runs import START, D

SIZES = [(5, 1), (8, 3), (16, 7)]
BEFORE_THE_COIN = ("join", "commit", "announce", "coin_commit/0", "coin_reveal/0")


@pytest.mark.parametrize("together", [False, True], ids=["one", "all"])
@pytest.mark.parametrize(("n", "b"), SIZES)
def test_who_leaves_out_what_the_others_said_forges_no_run(n: int, b: int, together: bool, tmp_path: Path) -> None:
    """All others look silent from the reports on; who is left is all of the forged members, and signs the end."""
    config = ProtocolConfig(peers=n, byzantine=b, run_id="forged")
    roster, (_, before, now), _ = transcripts(config, 3)
    forgers = keys(config, range(1, 1 + b) if together else [1])
    forged = without(now, lambda phase, sender: phase not in BEFORE_THE_COIN and sender not in forgers)
    # What is on trial now that so few have reported is right, say those who are left.
    forged = voting(Proof(forged, before), roster, config, forgers, FALSE_CLAIM)
    for name, finished, sealed in (("end", True, False), ("sealed end", True, True)):
        folder = tmp_path / name
        entries = write_run(folder, config, roster, Proof(forged, before), forgers, finished=finished, sealed=sealed)
        assert {entry.kind for entry in entries} == {"silent"}
        assert {peer for entry in entries for peer in entry.peers} == set(range(n)) - set(forgers)
        for task in (None, QuadraticTask(D)):
            with pytest.raises(AuditError, match=f"signed by {len(forgers)} of {len(forgers)} active peers; it takes"):
                audit(folder, task)
    for name, sealed in (("cut", False), ("sealed", True)):
        folder = tmp_path / name
        write_run(folder, config, roster, Proof(forged, before), forgers, sealed=sealed)
        report = audit(folder)
        assert len(report.findings) == len(entries)
        assert {finding.checked for finding in report.findings} == {UNCERTAIN}
        assert "nothing signed follows on step 2 yet" in report.summary


@pytest.mark.parametrize(("n", "b"), SIZES)
def test_removals_that_lower_the_bound_forge_no_run(n: int, b: int, tmp_path: Path) -> None:
    """With one claim more, what the others voted is malformed: they would be proven Byzantine, and none be left."""
    config = ProtocolConfig(peers=n, byzantine=b, run_id="forged")
    forgers = keys(config, range(1, 1 + b))
    attack = make_attack("misreport", Collusion(frozenset(forgers), n), start=START)
    roster, said, true = transcripts(config, 8, {1: attack})
    step = true[0].step
    before, now = said[step - 1 : step + 1]
    record = replayed(roster, config, D, Proof(now, before)).current
    victim = next(peer for peer in record.workers if peer not in forgers)
    claim = Claim(step, victim, "misreport", record.owners.index(1))
    forged = saying(now, config, forgers, {1: Claims((claim,))}, "accuse/0")
    for finished, sealed in ((True, True), (True, False), (False, True)):
        folder = tmp_path / f"{finished} {sealed}"
        proof = Proof(forged, before)
        entries = write_run(folder, config, roster, proof, forgers, finished=finished, sealed=sealed)
        assert {peer for entry in entries for peer in entry.peers} >= set(range(n)) - set(forgers)
        assert still_byzantine(config, entries) == 0
        if finished:
            with pytest.raises(AuditError, match="it takes a majority"):
                audit(folder)
        else:
            assert {finding.checked for finding in audit(folder).findings} == {UNCERTAIN}
