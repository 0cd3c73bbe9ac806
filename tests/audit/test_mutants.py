"""Whatever b peers do to the files of a real run, the audit accepts what happened and nothing else.

A mutant is a recorded run of which files were changed: messages, packets, lines and signatures dropped, swapped, cut
off or taken from another step or life, and made up by those whose keys are the forgers' own. `--seeds N` makes more.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from btard.attacks import make_attack
from btard.audit import audit
from btard.audit.ledger import AgreedState
from btard.audit.recorder import Recorder
from btard.audit.settings import read_settings
from btard.drivers.local import LocalDriver
from btard.protocol.collusion import Collusion
from btard.protocol.config import ProtocolConfig
from btard.protocol.identity import Identity
from btard.protocol.ledger import Ledger
from btard.task import QuadraticTask
from tests.audit.forgery import keys
from tests.audit.mutants import Run, Truth, judged
from tests.audit.runs import D, attackers, record, write_lines


def _run(folder: Path, forgers: set[int], **more: Any) -> Run:
    record(folder, **more)
    return Run(folder, folder, keys(read_settings(folder)[0], sorted(forgers)))


def _several(names: dict[int, tuple[str, int]], peers: int, **options: Any) -> dict[str, Any]:
    """An attack each, from the given step on; one more is Byzantine and does nothing until it forges."""
    collusion = Collusion(frozenset({*names, 4}), peers)
    attacks = {i: make_attack(name, collusion, start=start) for i, (name, start) in names.items()}
    return {"behaviours": attacks, "collusion": collusion, "peers": peers, "byzantine": len(names) + 1, **options}


def _attacked(folder: Path) -> Run:
    names = {1: ("misreport", 1), 2: ("wrong_reveal", 3)}
    return _run(folder, {1, 2, 4}, **_several(names, 8), steps=6)


def _silent(folder: Path) -> Run:
    names = {1: ("silent", 1), 2: ("withheld_part", 3)}
    return _run(folder, {1, 2, 4}, **_several(names, 8), steps=6)


def _unfinished(folder: Path) -> Run:
    """Its last removal has no seal."""
    names = {1: ("misreport", 1), 2: ("wrong_reveal", 3)}
    return _run(folder, {1, 2, 4}, **_several(names, 8), steps=4, finish=False)


def _tolerant(folder: Path) -> Run:
    return _run(
        folder, {1, 2, 4}, **_several({1: ("noise", 1), 2: ("misreport", 2)}, 8), steps=6, validation="tolerant"
    )


def _joined(folder: Path) -> Run:
    def enter(driver: LocalDriver, step: int) -> None:
        if step in (0, 2):
            driver.join(Identity.from_seed(driver.config.run_id, 5 + step // 2))

    attack = attackers("misreport", count=1, peers=5, start=4)
    run = _run(folder, {1}, **attack, steps=8, probation=2, between=enter)
    # A newcomer on probation is no member, and can forge as well.
    return replace(run, forgers=keys(read_settings(folder)[0], [1, 6]))


def _resumed(folder: Path) -> Run:
    """Two lives from step 2 on, in which other peers fell out; both came to an end."""
    config = ProtocolConfig(peers=8, byzantine=3, run_id="audit")

    def driver_for(who: int) -> LocalDriver:
        collusion = Collusion(frozenset({1, 2, 4}), 8)
        attack = make_attack("misreport", collusion, start=3)
        return LocalDriver(
            config,
            QuadraticTask(D),
            behaviours={who: attack},
            collusion=collusion,
            recorder=Recorder(folder, config),
        )

    other = folder.with_name(folder.name + "-other")
    driver, params = driver_for(1), torch.ones(D)
    for _ in range(2):
        params = params - 0.1 * driver.step(params).gradient
    state, tensors = driver.state()
    kept = json.dumps(state), {name: value.clone() for name, value in tensors.items()}
    for who in (1, 2):
        driver, x = driver_for(who), params
        driver.restore(json.loads(kept[0]), {name: value.clone() for name, value in kept[1].items()}, life=b"resumed")
        for _ in range(4):
            x = x - 0.1 * driver.step(x).gradient
        ledger = Ledger()
        write_lines(folder, [ledger.append(entry) for entry in driver.honest[0].ledger.entries], chained=True)
        driver.attest(x)
        if who == 1:
            shutil.copytree(folder, other)
    return Run(folder, other, keys(config, [1, 2, 4]))


RUNS: dict[str, Callable[[Path], Run]] = {
    "attacked": _attacked,
    "silent": _silent,
    "unfinished": _unfinished,
    "tolerant": _tolerant,
    "joined": _joined,
    "resumed": _resumed,
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Run]:
    made: dict[str, Run] = {}

    def get(name: str) -> Run:
        if name not in made:
            folder = tmp_path_factory.mktemp("mutants") / name
            folder.mkdir()
            made[name] = RUNS[name](folder)
            assert Truth.of(folder).allows(audit(folder)), "the run itself"
            assert audit(folder).findings
        return made[name]

    return get


@pytest.mark.parametrize("name", RUNS)
def test_no_mutant_states_an_untruth(name: str, seed: int, runs: Callable[[str], Run], tmp_path: Path) -> None:
    assert judged(runs(name), seed, tmp_path)["refused"] > 0


def test_an_audit_that_takes_any_majority_is_found_out(
    runs: Callable[[str], Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The harness can fail."""

    def majority(self: AgreedState, signers: set[int], step: int) -> bool:
        active = set(self.active(step))
        return 2 * len(active.intersection(signers)) > len(active)

    monkeypatch.setattr(AgreedState, "enough", majority)
    attacked = runs("attacked")
    with pytest.raises(AssertionError, match="end"):
        sum((judged(attacked, seed, tmp_path, "end") for seed in range(8)), Counter())
