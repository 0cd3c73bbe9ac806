"""Mimic: who is copied, and when that is settled."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from btard.attacks import Collusion, make_attack

H, D = 5, 30


def stream_of_gradients(steps, odd=3, length=4.0):
    """Step -> honest gradients [H, D]: noise, and peer `odd` is off by `length` along an axis."""
    generator = torch.Generator().manual_seed(2)
    for _ in range(steps):
        rows = torch.randn(H, D, generator=generator)
        rows[odd, 7] += length
        yield rows


def play(context, rows_of_steps, warmup, **common):
    """The peers copied in turn; None for a vector that is nobody's."""
    collusion = Collusion(frozenset({5, 6}), 7, **common)
    attackers = [make_attack("mimic", collusion, warmup=warmup) for _ in range(2)]
    copied = []
    for step, rows in enumerate(rows_of_steps):
        collusion.observe(step, dict(enumerate(rows)))
        sent = [attacker.gradient(context(peer=5 + i, step=step), rows[0]) for i, attacker in enumerate(attackers)]
        assert torch.equal(sent[0], sent[1])
        copied.append(next((i for i, row in enumerate(rows) if torch.equal(row, sent[0])), None))
    return copied, collusion


def test_who_differs_most_is_copied_and_stays_the_victim(context):
    rows = [*stream_of_gradients(25), *stream_of_gradients(5, odd=1, length=40.0)]
    copied, _ = play(context, rows, warmup=25)
    assert set(copied[-8:]) == {3}, "the warm-up is over when peer 1 begins to stand out"
    assert set(play(context, rows, warmup=30)[0][-2:]) == {1}


def test_the_direction_is_the_top_eigenvector_and_the_score_the_projection(context):
    """Without noise the answer is known: all that differs is peer 2, by 3 along the first axis."""
    rows = torch.zeros(4, 6)
    rows[2, 0] = 3.0
    rows += torch.tensor([0.0, 5.0, 0.0, 0.0, 0.0, 0.0])
    _, collusion = play(context, [rows] * 3, warmup=2)
    z, scores = collusion.memory["mimic 0 1 2 direction"], collusion.memory["mimic 0 1 2 scores"]
    assert z.abs().tolist() == pytest.approx([1, 0, 0, 0, 0, 0], abs=1e-6)
    assert scores.abs().tolist() == pytest.approx([0, 0, 6, 0], abs=1e-5)  # two steps of 3, then it is settled
    assert int(collusion.memory["mimic 0 1 2 steps"]) == 2


def test_oja_comes_near_the_eigenvector_of_all_steps_together(context):
    rows = list(stream_of_gradients(40))
    _, collusion = play(context, rows, warmup=40)
    centred = torch.cat([part - torch.cat(rows).mean(0) for part in rows]).double().numpy()
    _, vectors = np.linalg.eigh(centred.T @ centred)
    cosine = abs(float(vectors[:, -1] @ collusion.memory["mimic 0 1 40 direction"].double().numpy()))
    assert cosine > 0.9


def test_memory_of_a_checkpoint_goes_on(context):
    rows = list(stream_of_gradients(6))
    whole, first = play(context, rows, warmup=5)
    _, half = play(context, rows[:3], warmup=5)
    resumed = Collusion(frozenset({5, 6}), 7)
    resumed.restore(half.state() | {"something/else": torch.zeros(1)})
    attacker = make_attack("mimic", resumed, warmup=5)
    for step in range(3, 6):
        resumed.observe(step, dict(enumerate(rows[step])))
        sent = attacker.gradient(context(peer=5, step=step), rows[step][0])
        assert torch.equal(sent, rows[step][whole[step]])
    assert {name: x.tolist() for name, x in resumed.memory.items()} == {n: x.tolist() for n, x in first.memory.items()}


def test_equal_gradients_are_no_trouble_and_a_victim_that_does_not_work_is_replaced(context):
    copied, collusion = play(context, [torch.ones(3, 4)] * 3, warmup=2)
    assert copied == [0, 0, 0] and all(torch.isfinite(x).all() for x in collusion.memory.values())
    rows = torch.eye(4) * torch.tensor([1.0, 9.0, 1.0, 1.0])
    collusion = Collusion(frozenset({5}), 6)
    attacker = make_attack("mimic", collusion, warmup=1)
    collusion.observe(0, dict(enumerate(rows)))
    assert torch.equal(attacker.gradient(context(), rows[0]), rows[1])
    collusion.observe(1, {0: rows[0], 2: rows[2]})  # peer 1 validates
    assert torch.equal(attacker.gradient(context(), rows[0]), rows[2])


def test_the_warm_up_is_of_the_attacks_steps_whoever_validates_in_them(context):
    """A validator sends no gradient, but learns as the others do: in processes of their own they must agree."""
    rows = list(stream_of_gradients(8))
    alone, together = Collusion(frozenset({5}), 7), Collusion(frozenset({5}), 7)
    attackers = [make_attack("mimic", collusion, warmup=2, start=2, every=3) for collusion in (alone, together)]
    for step, honest in enumerate(rows):
        for collusion in (alone, together):
            collusion.observe(step, dict(enumerate(honest)))
        if step == 5:
            attackers[1].gradient(context(step=step), honest[0])
    assert int(alone.memory["mimic 2 3 2 steps"]) == 2  # 2 and 5
    assert all(torch.equal(x, together.memory[name]) for name, x in alone.memory.items())
