"""Environments stay within the documented bounds, up to their edges."""

from __future__ import annotations

from msgspec.structs import replace

from btard.protocol.hashing import stream
from scripts.hunt.cases import Environment, Life, Newcomer
from scripts.hunt.environments import calmed, config_of, draw, draw_steps, missing_at, mutated, problem, weather_of


def test_drawn_and_changed_ones_are_promised_something_for() -> None:
    rng = stream("test environments", 0)
    edges = 0
    for seed in range(400):
        steps = draw_steps(rng)
        env = mutated(draw(rng, steps), rng, steps)
        assert problem(env, steps) is None
        config = config_of(env, seed)
        most = max(len(missing_at(env, step)) for step in range(steps))
        assert 2 * config.byzantine < config.peers - most
        edges += 2 * config.byzantine + 2 >= config.peers - most
    assert edges > 100  # the documented limit is where it is interesting


def test_what_is_calm_has_no_mishaps_any_more() -> None:
    rng = stream("test calm", 0)
    calm = 0
    for _ in range(300):
        steps = draw_steps(rng)
        env = draw(rng, steps)
        start = int(rng.integers(steps))
        env = calmed(env, start)
        assert problem(env, steps) is None
        assert not [item for item in (*env.away, *env.late, *env.drops) if item[1] >= start]
        assert env.life is None or env.life.lost <= start
        assert weather_of(env, 0).lost(start, "report", env.peers, acknowledged=False) is None
        calm += mutated(env, rng, steps).calm is not None
    assert calm > 200
    noisy = Environment(peers=7, byzantine=1, loss=0.2, calm=2)
    assert weather_of(noisy, 0).lost(1, "report", 7, acknowledged=False) is not None
    assert problem(replace(noisy, late=((1, 2),)), 4) is not None
    assert problem(noisy, 2) is not None


def test_what_is_beyond_the_bounds_is_refused() -> None:
    good = Environment(peers=5, members=(1, 2), byzantine=2, d=16)
    assert problem(good, 4) is None
    bad = {
        "honest peers": replace(good, away=((1, 0),)),
        "a peer away": replace(good, away=((0, 1),)),
        "a peer gone": replace(good, members=(), byzantine=0, away=((0, 0), (0, 1), (0, 2))),
        "a peer dropped": replace(good, drops=((0, 1, "report"),)),
        "too many hostile": replace(good, members=(1, 2, 3)),
        "a hostile newcomer": replace(good, probation=2, newcomers=(Newcomer(0, hostile=True),)),
        "nobody can join": replace(good, newcomers=(Newcomer(0),)),
        "no step to repeat": replace(good, life=Life(2, 5)),
        "audit of ideal commitments": replace(good, commitments="ideal", recorded=True),
        "lossy and few": replace(good, loss=0.1),
    }
    for name, env in bad.items():
        assert problem(env, 4) is not None, name
    assert problem(replace(good, byzantine=1, members=(1,), away=((0, 1),)), 4) is None
    assert problem(replace(good, byzantine=1, members=(1,), away=((0, 1), (2, 2))), 4) is None
    assert problem(replace(good, byzantine=1, members=(1,), away=((0, 1), (2, 2), (3, 2))), 4) is not None
