"""Environments stay within the documented bounds, up to their edges."""

from __future__ import annotations

from collections import Counter

import torch
from msgspec.structs import replace

from btard.protocol.effects import Compute
from btard.protocol.hashing import stream
from scripts.hunt.cases import Environment, Faint, Life, Newcomer
from scripts.hunt.environments import (
    SHAPES,
    calmed,
    config_of,
    draw,
    draw_steps,
    missing_at,
    mutated,
    problem,
    tasks_of,
    weather_of,
)


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


def test_the_draw_covers_what_is_documented() -> None:
    rng = stream("test cover", 0)
    drawn = [draw(rng, draw_steps(rng)) for _ in range(1500)]
    assert {env.peers for env in drawn} == set(range(3, 17))
    assert {(env.validation, env.commitments) for env in drawn} >= {
        ("exact", "hashed"),
        ("exact", "ideal"),
        ("tolerant", "hashed"),
        ("tolerant", "ideal"),
    }
    ratios = [env.tau / env.scale for env in drawn if isinstance(env.tau, float)]
    assert min(ratios) <= 1e-11
    assert max(ratios) >= 1e11
    taus = Counter(env.tau if isinstance(env.tau, str) else "number" for env in drawn)
    assert min(taus["auto"], taus["inf"], taus["number"]) > 50
    assert {env.gradients for env in drawn} == set(SHAPES)
    for name, some in {
        "probation": lambda env: env.probation is not None and bool(env.newcomers),
        "a hostile newcomer": lambda env: any(newcomer.hostile for newcomer in env.newcomers),
        "a second life": lambda env: env.life is not None,
        "lossy links": lambda env: env.loss > 0,
        "lossy links without liars": lambda env: env.loss > 0 and not env.byzantine,
        "relays at b": lambda env: env.byzantine > 0 and env.relays == env.byzantine,
        "several validators": lambda env: env.validators > 1,
        "several directions": lambda env: env.directions > 1,
        "beside": lambda env: env.beside,
        "recorded": lambda env: env.recorded,
        "healing": lambda env: env.heal != "off",
        "healing of the window that follows from the settings": lambda env: env.heal == "auto",
        "late in the roll call": lambda env: any(faint.phase == "commit" for faint in env.faint),
        "late in join": lambda env: any(faint.phase != "commit" for faint in env.faint),
        "late while others are away": lambda env: bool(env.faint and env.away),
        "calm": lambda env: env.calm is not None,
    }.items():
        assert sum(map(some, drawn)) >= 5, name


def test_peers_of_the_mode_tolerant_compute_with_numerics_of_their_own() -> None:
    _, tasks = tasks_of(Environment(peers=4, d=12, validation="tolerant"))
    assert tasks is not None
    rows = torch.empty(4, 12)
    for peer, task in tasks.items():
        task.gradients(torch.ones(12), [Compute(0, 0, b"batch")], rows[peer : peer + 1])
    assert len({tuple(row.tolist()) for row in rows}) == 4
    assert float((rows - rows[0]).norm(dim=1).max()) < 1e-4 * float(rows[0].norm())


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
    faint = Environment(peers=4, members=(3,), byzantine=1, faint=(Faint(2, 1, to="one", pick=1),))
    lost = weather_of(faint, 0).lost(1, "commit", 4, acknowledged=False)
    assert lost is not None and [tuple(map(int, found)) for found in zip(*lost.nonzero(), strict=True)] == [(2, 1)]
    assert weather_of(faint, 0).lost(1, "commit/relay/1", 4, acknowledged=False) is None
    assert weather_of(calmed(faint, 1), 0).lost(1, "commit", 4, acknowledged=False) is None
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
        "lossy and nobody relays": Environment(peers=6, byzantine=0, loss=0.1),
        "late and nobody relays": Environment(peers=6, byzantine=0, faint=(Faint(0, 1),)),
        "late where nobody can join": replace(good, byzantine=1, members=(1,), faint=(Faint(0, 1, "join"),)),
        "late twice": replace(good, byzantine=1, members=(1,), faint=(Faint(0, 1), Faint(0, 1, pick=1))),
        "too few in time": replace(good, faint=(Faint(0, 1),)),
        "too few relays": replace(good, relays=1),
    }
    for name, env in bad.items():
        assert problem(env, 4) is not None, name
    assert problem(replace(good, byzantine=1, members=(1,), away=((0, 1),)), 4) is None
    assert problem(replace(good, byzantine=1, members=(1,), faint=(Faint(0, 1),)), 4) is None
    assert problem(replace(good, byzantine=1, members=(1,), away=((0, 1), (2, 2))), 4) is None
    assert problem(replace(good, byzantine=1, members=(1,), away=((0, 1), (2, 2), (3, 2))), 4) is not None
