"""The sampling law against brute force, against the paper's figure, and against bans of real runs."""

import numpy as np
import pytest

from btard.attacks import make_attack
from btard.protocol.choose import draw_validators
from btard.protocol.collusion import Collusion
from btard.protocol.hashing import digest
from btard.protocol.law import chances_to_be_caught, expected_last_ban, survival_law
from tests.protocol.cohort import run_cohort


def simulate(peers: int, byzantine: int, validators: int, steps: int, runs: int) -> np.ndarray:
    """The draws of `draw_validators` without the protocol around them: [steps, byzantine + 1] frequencies."""
    counts = np.zeros((steps, byzantine + 1))
    for run in range(runs):
        bad, active, assignments = set(range(byzantine)), tuple(range(peers)), {}
        for step in range(-5, steps):
            if step >= 0:
                counts[step, len(bad)] += 1
            workers = tuple(p for p in active if p not in assignments)
            assignments = draw_validators(digest(run, step), workers, active, validators)
            caught = {u for v, u in assignments.items() if step >= 0 and v not in bad and u in bad}
            bad -= caught
            # Judged in the following step, whose draw they are no longer part of; they still are its workers.
            active = tuple(p for p in active if p not in caught)
    return counts / runs


@pytest.mark.parametrize(("peers", "byzantine", "validators"), [(8, 3, 1), (9, 3, 2), (16, 7, 1)])
def test_law_is_that_of_the_draws(peers: int, byzantine: int, validators: int) -> None:
    runs, steps = 3000, 12
    law = survival_law(peers, byzantine, validators, steps, start=5)
    seen = simulate(peers, byzantine, validators, steps, runs)
    # Five standard deviations of a frequency, at (steps x states) points.
    assert np.all(np.abs(seen - law) <= 5 * np.sqrt(law * (1 - law) / runs) + 1e-9)


@pytest.mark.parametrize("validators", [1, 2, 3])
@pytest.mark.parametrize("others", [(), (0, 6), (0, 1, 2, 3, 4, 5)])
def test_chances_to_be_caught_are_those_of_the_draws(validators: int, others: tuple[int, ...]) -> None:
    """9 peers, 6 to 8 are Byzantine, `others` did not work; and two given attackers may be caught by one draw."""
    peers, bad, runs = tuple(range(9)), {6, 7, 8}, 6000
    workers = tuple(p for p in peers if p not in others)
    one = both = 0
    for run in range(runs):
        drawn = draw_validators(digest("chances", run), workers, peers, validators)
        caught = {target for judge, target in drawn.items() if judge not in bad}
        one, both = one + (8 in caught), both + ({7, 8} <= caught)
    marked, idle = len(bad - set(others)), len(bad & set(others))
    chances = chances_to_be_caught(len(workers) - marked, marked, len(others) - idle, idle, validators)
    for seen, chance in zip((one, both), chances, strict=True):
        assert abs(seen / runs - chance) <= 4 * np.sqrt(chance * (1 - chance) / runs)
    assert chances[0] > 0 and (chances[1] > 0) == (validators > 1)


def test_chances_to_be_caught_by_hand() -> None:
    assert chances_to_be_caught(8, 7, 1, 0, 1)[0] == pytest.approx(9 / (15 * 15)), "(a - beta)/(a - 1)^2"
    assert chances_to_be_caught(9, 6, 0, 1, 1)[0] == pytest.approx(9 / (15 * 15)), "who validates does not matter"
    assert chances_to_be_caught(0, 1, 2, 0, 1)[0] == 1.0
    assert chances_to_be_caught(3, 0, 1, 1, 1) == chances_to_be_caught(3, 2, 1, 1, 0) == (0.0, 0.0)


def test_expectation_of_the_papers_setting() -> None:
    closed_form = sum((9 + beta) * (8 + beta) / (9 * beta) for beta in range(1, 8))
    assert closed_form == pytest.approx(37.07, abs=0.01)  # with the chance per step of the authors' simulation
    assert expected_last_ban(16, 7, 1) == pytest.approx(closed_form, rel=0.01)


def test_law_is_a_distribution_that_only_loses_attackers() -> None:
    law = survival_law(16, 7, 2, 60, start=3)
    assert np.allclose(law.sum(1), 1)
    assert law[0, 7] == 1 and law[-1, 0] > 0.95
    assert np.all(np.diff(law.cumsum(1)[:, :-1], axis=0) >= -1e-12)


def test_draws_are_distinct_and_leave_a_worker() -> None:
    for run in range(200):
        active = tuple(range(3, 3 + 1 + run % 9))
        workers = active[: 1 + run % len(active)]
        drawn = draw_validators(digest("draw", run), workers, active, 3)
        assert len({*drawn, *drawn.values()}) == 2 * len(drawn)
        assert set(drawn) <= set(active) and set(drawn.values()) <= set(workers)
        assert len(active) > len(drawn)
    assert draw_validators(digest("x"), (4,), (4,), 1) == {}
    assert draw_validators(digest("x"), (0, 1, 2), (0, 1, 2), 0) == {}


def test_ban_times_of_real_runs_follow_the_law() -> None:
    """Kolmogorov-Smirnov on the step of the last ban, 40 runs of n = 6, b = 2, level 1 %.

    For a discrete law the test is conservative: the true level is below 1 %. Seeds are fixed, so it never flickers.
    """
    peers, byzantine, runs, start, steps = 6, 2, 40, 2, 40
    last = []
    for seed in range(runs):
        collusion = Collusion(frozenset({1, 4}), peers, seed)
        attackers = {i: make_attack("sign_flip", collusion, start=start) for i in collusion.members}
        run = run_cohort(
            attackers,
            peers=peers,
            d=23,
            seed=seed,
            steps=start + steps,
            collusion=collusion,
            until_banned=collusion.members,
        )
        assert set(run.removed) <= {1, 4}, f"seed {seed}: an honest peer was banned"
        bans = [entry.step - start for entry in run.entries]
        last.append(max(bans) if len(bans) == byzantine else steps)
    law = survival_law(peers, byzantine, 1, steps, start=start)
    # P(last ban at step start + s or before) = P(nobody left after the bans of that step) = law[s, 0].
    empirical = np.array([np.mean([t <= s for t in last]) for s in range(steps)])
    assert np.abs(empirical - law[:, 0]).max() < 1.628 / np.sqrt(runs)
