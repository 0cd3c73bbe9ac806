"""Every attack in the local driver: it runs, honest peers stay, and outside its steps it does nothing."""

from __future__ import annotations

import pytest
import torch

from btard.attacks import ATTACKS, Collusion, make_attack
from btard.drivers.links import Links
from btard.drivers.local import LocalDriver
from btard.protocol.commitments import Hashed
from btard.protocol.config import ProtocolConfig
from btard.protocol.effects import Compute
from btard.protocol.hashing import batch_seed
from btard.protocol.messages import CLAIM_KINDS, Claim
from btard.task import QuadraticTask

LOSES_HONEST_PEERS = ("withheld_part", "withheld_aggregate", "sole_sender")
"""ELIMINATE takes one honest peer with each attacker."""
HARMLESS = ("never_accuse", "lying_votes", "selective_silence", "junk_relays", "healing_lies")
"""On their own they break no rule that anybody could hold against them."""


def test_gradient_attacks_never_cost_an_honest_peer(run, gradient_attack):
    done = run(gradient_attack, steps=3)
    assert len(done.results) == 3
    assert not done.honest_removed
    assert all(torch.isfinite(result.gradient).all() for result in done.results)


@pytest.mark.parametrize("attack", [name for name in ATTACKS if name not in LOSES_HONEST_PEERS + HARMLESS])
def test_no_honest_peer_is_removed_and_attackers_are(run, attack):
    removed: set[int] = set()
    for seed in range(3):
        done = run(attack, steps=6, seed=seed)
        assert not done.honest_removed
        removed |= set(done.removed)
    assert removed


def gradients(done) -> list[torch.Tensor]:
    return [result.gradient for result in done.results]


@pytest.mark.parametrize("attack", list(ATTACKS))
def test_inactive_attackers_are_honest(run, attack):
    """Steps 0 and 1 are those of a run in which the attack never starts; step 2 is not."""
    never, later = run(attack, steps=3, start=100), run(attack, steps=3, start=2)
    assert all(torch.equal(a, b) for a, b in zip(gradients(never)[:2], gradients(later)[:2], strict=True))
    assert not never.removed and not [entry for result in later.results[:2] for entry in result.removed]


def test_gradient_attacks_change_the_aggregate_in_their_steps_only(run, gradient_attack, monkeypatch):
    acted: list[int] = []
    for hook in ("request", "gradient"):
        original = getattr(ATTACKS[gradient_attack], hook)

        def note(self, ctx, value, original=original):
            out = original(self, ctx, value)
            if out is not value and not (isinstance(out, torch.Tensor) and torch.equal(out, value)):
                acted.append(ctx.step)
            return out

        monkeypatch.setattr(ATTACKS[gradient_attack], hook, note)
    run(gradient_attack, steps=6, start=1, every=3)
    assert set(acted) <= {1, 4} and 1 in acted


def test_two_runs_are_equal_to_the_bit(run, gradient_attack):
    first, second = run(gradient_attack, steps=3, seed=5), run(gradient_attack, steps=3, seed=5)
    assert all(torch.equal(a, b) for a, b in zip(gradients(first), gradients(second), strict=True))
    assert first.removed == second.removed


@pytest.mark.parametrize("options", [{"scale": 0.5}, {"scale": 2.0}])
def test_colluders_within_delta_max_pass_their_step_and_fall_with_the_first_validated_one(run, options):
    kinds = set()
    for seed in range(6):
        done = run("colluding_aggregate", steps=6, seed=seed, **options)
        assert not done.results[0].removed, "verification 2 or 3 saw it although s was cooked"
        assert not done.honest_removed
        kinds |= {kind for _, kind in done.removed.values()}
    assert kinds == {"wrong_gradient", "wrong_aggregate"}


def test_colluders_far_beyond_delta_max_fall_in_the_same_step(run):
    done = run("colluding_aggregate", steps=1, scale=100.0)
    assert done.removed == dict.fromkeys(sorted(done.collusion.members), (0, "wrong_aggregate"))


def test_a_wrong_aggregate_alone_falls_in_the_same_step(run):
    done = run("wrong_aggregate", steps=1, scale=0.1)
    assert done.removed == dict.fromkeys(sorted(done.collusion.members), (0, "wrong_aggregate"))


def test_cooked_sums_vanish(run):
    """The peers' own view of step 0: the products of every part sum up to zero, of wrong aggregates too."""
    done = run("colluding_aggregate", steps=1)
    last = done.driver.honest[0].last
    assert last is not None
    for part, entry in last.announced.items():
        products = [last.reports[i].products[part][0] for i in entry.senders]
        assert abs(sum(products)) < 1e-4 * sum(map(abs, products))


@pytest.mark.parametrize("what", ["norm", "s", "both"])
def test_misreports_are_seen_by_the_owners(run, what):
    done = run("misreport", steps=1, what=what)
    assert done.removed == dict.fromkeys(sorted(done.collusion.members), (0, "misreport"))


ELIMINATING = ("withheld_part", "withheld_aggregate")


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("kind", sorted(CLAIM_KINDS - set(ELIMINATING)))
def test_false_accusations_cost_the_accusers(run, kind, together):
    done = run("false_accusation", steps=3 if kind != "wrong_gradient" else 20, kind=kind, together=together)
    # V2 and V3 put aggregates on trial: nobody may accuse their owners of them.
    expected = "malformed_claims" if kind == "wrong_aggregate" else "false_accusation"
    assert done.removed and {k for _, k in done.removed.values()} == {expected}
    assert set(done.removed) <= done.collusion.members


def test_a_false_dispute_takes_at_most_one_honest_peer_per_attacker(run):
    done = run("false_accusation", steps=3, kind="withheld_aggregate")
    assert len(done.honest_removed) <= len(set(done.removed) & done.collusion.members)


@pytest.mark.parametrize("name", ["bad_part", "bad_aggregate"])
@pytest.mark.parametrize("recipients", ["one", "all"])
@pytest.mark.parametrize("send", ["other", "short", "nan", "garbage"])
def test_broken_packets_are_evidence(run, name, recipients, send):
    done = run(name, steps=1, recipients=recipients, send=send)
    assert done.removed == dict.fromkeys(sorted(done.collusion.members), (0, name))


@pytest.mark.parametrize("phase", ["part", "announce", "aggregate", "coin_commit", "coin_reveal", "report", "accuse"])
def test_silence_after_the_commitment_removes_the_silent_alone(run, phase):
    done = run("silent", steps=1, phase=phase)
    assert done.removed == dict.fromkeys(sorted(done.collusion.members), (0, "silent"))


def test_silence_before_the_commitment_costs_the_step(run):
    done = run("silent", steps=2, phase="commit")
    assert not done.removed
    assert not set(done.results[0].workers) & done.collusion.members


@pytest.mark.parametrize("name", HARMLESS)
def test_who_breaks_no_rule_stays(run, name):
    done = run(name, steps=3)
    assert not done.removed


@pytest.mark.parametrize("name", ["withheld_part", "withheld_aggregate"])
def test_withholding_from_one_takes_one_honest_peer_from_all_removes_the_attacker_alone(run, name):
    one, everybody = run(name, steps=1, recipients="one"), run(name, steps=1, recipients="all")
    assert len(one.honest_removed) <= len(set(one.removed) & one.collusion.members)
    assert set(everybody.removed) == everybody.collusion.members


@pytest.mark.parametrize("options", [{"value": "nan"}, {"value": "inf"}, {"value": "nan", "entries": "all"}])
def test_non_finite_gradients_go_in_nowhere(run, options):
    # A fellow that owns the part, and falls out itself, may be the only one to know: then it takes another step.
    done = run("non_finite", steps=6, **options)
    assert set(done.removed) == done.collusion.members
    assert all(torch.isfinite(result.gradient).all() for result in done.results)


def test_wrong_reveals_are_seen_by_all(run):
    done = run("wrong_reveal", steps=1)
    assert done.removed == dict.fromkeys(sorted(done.collusion.members), (0, "wrong_reveal"))


@pytest.mark.parametrize(("name", "stale"), [("label_flip", 0), ("delayed_gradient", 2)])
def test_the_driver_computes_what_the_attacker_asks_for(run, quadratic, name, stale):
    """The commitments of step 3 are those of the flipped, or of the old, public batch at the parameters of its step."""
    done = run(name, steps=4, start=3)
    last = done.driver.honest[0].last
    assert last is not None
    attackers = sorted(set(last.commits) & done.collusion.members)
    assert attackers
    for attacker in attackers:
        then, coins = last.step - stale, done.driver.honest[0].coins
        seed = batch_seed(done.driver.config.run_id, then, attacker, coins[then])
        params = torch.ones(quadratic.d)
        for result in done.results[:then]:
            params = params - 0.1 * result.gradient
        out = torch.empty(1, quadratic.d)
        quadratic.gradients(params, [Compute(then, attacker, seed, flip_labels=name == "label_flip")], out)
        digests = Hashed(done.driver.config.run_id).parts(attacker, last.step, out[0], last.cut)
        assert last.commits[attacker].digests == digests


def test_never_accuse_drops_what_a_validator_found_and_nothing_else(context):
    attack = make_attack("never_accuse", Collusion(frozenset({7}), 8))
    found = (Claim(4, 1, "wrong_gradient"), Claim(5, 2, "bad_part", 0))
    assert attack.accuse(context(), found) == found[1:]


@pytest.mark.parametrize("name", [name for name, attack in ATTACKS.items() if attack.requires_cohort])
def test_where_all_honest_workers_are_slow_an_attacker_sends_its_own_gradient(name: str) -> None:
    """It has none to start from, and takes none of an earlier step."""
    collusion = Collusion(frozenset({1}), 3)
    config = ProtocolConfig(3, 1, "slow", max_absences=100)
    task, slow = QuadraticTask(12), Links(slow=0.4, seed=2)
    driver = LocalDriver(config, task, behaviours={1: make_attack(name, collusion)}, collusion=collusion, links=slow)
    known = []
    for _ in range(3):
        driver.step(torch.ones(12))
        known.append(collusion.honest_peers)
    assert known[:2] == [(), ()] and known[2], "choose another seed"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_gpu_gives_the_same_vectors(collude, context, gradient_attack):
    rows = torch.randn(6, 1000, generator=torch.Generator().manual_seed(0))
    sent = [
        make_attack(gradient_attack, collude(rows.to(device))).gradient(context(d=1000), rows[0].to(device))
        for device in ("cpu", "cuda")
    ]
    assert sent[1].is_cuda
    assert torch.allclose(sent[0], sent[1].cpu(), rtol=1e-4, atol=1e-5 * float(sent[0].abs().max()))
