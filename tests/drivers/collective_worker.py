"""What one rank does in the tests of the collective driver, also under torchrun: `collective_worker.py MODE FOLDER`.

`registry`: every attack for a few steps, results to FOLDER. `exit` and `hang`: rank 2 dies or sleeps in a phase.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file

from btard.attacks import ATTACKS, make_attack
from btard.drivers.collective import CollectiveDriver, Fallen
from btard.drivers.loop import StepResult
from btard.drivers.mesh import Mesh, RankLost
from btard.protocol.behaviour import Behaviour, Context
from btard.protocol.collusion import Collusion
from btard.protocol.config import ProtocolConfig
from btard.task import QuadraticTask

PEERS, MEMBERS, D, STEPS = 6, frozenset({2, 4}), 61, 3
OPTIONS = {"delayed_gradient": {"delay": 2}}
HEALED = "healed"
"""The run in which the peers go back from what a sign flip did."""
RUNS = (*ATTACKS, HEALED)
LOST_AMONG = 4
"""The number of peers where one is lost: as few as say something, since each has a process."""


def setting(attack: str) -> tuple[ProtocolConfig, Collusion, dict[int, Behaviour]]:
    """The run of `attack` that both drivers do."""
    settings: dict[str, Any] = {"heal": "auto", "tau": 100.0} if attack == HEALED else {}
    config = ProtocolConfig(peers=PEERS, byzantine=len(MEMBERS), run_id=f"collective {attack}", **settings)
    collusion = Collusion(MEMBERS, PEERS, seed=1)
    options = OPTIONS.get(attack, {})
    name = "sign_flip" if attack == HEALED else attack
    return config, collusion, {peer: make_attack(name, collusion, start=1, **options) for peer in sorted(MEMBERS)}


def steps_of(attack: str) -> int:
    return 12 if attack == HEALED else STEPS


def advanced(params: torch.Tensor, result: StepResult) -> torch.Tensor:
    """What a training makes of a step."""
    return params - 0.1 * result.gradient if result.back_to is None else result.state["parameters"].clone()


def registry(store: dist.Store, rank: int, folder: Path) -> None:
    """Run every attack and write what it came to: ledger, parameters, bytes; of a rank that fell, that it did."""
    for number, attack in enumerate(RUNS):
        config, collusion, behaviours = setting(attack)
        driver = CollectiveDriver(
            config,
            QuadraticTask(D),
            Mesh(dist.PrefixStore(str(number), store), rank, PEERS, timeout=60),
            behaviours=behaviours,
            collusion=collusion,
            note=lambda: f"from {rank}".encode(),
        )
        params, lines, sent = torch.ones(D), [], []
        try:
            for _ in range(steps_of(attack)):
                result = driver.step(params)
                lines += [entry.to_json() for entry in result.removed]
                sent.append(result.sent[rank])
                params = advanced(params, result)
                assert all(driver.notes[other] == f"from {other}".encode() for other in driver.mesh.ranks)
            left = driver.mesh.ranks
        except Fallen as fallen:
            left, lines = (), [str(fallen)]
        report = {"ledger": lines, "sent": sent, "ranks": left, "active": driver.peer.active}
        (folder / f"{attack}.{rank}.json").write_text(json.dumps(report))
        save_file({"params": params}, folder / f"{attack}.{rank}.safetensors")


class Stuck(Behaviour):
    """Dies or sleeps when it is to report."""

    def __init__(self, mode: str) -> None:
        self.mode = mode

    def active(self, step: int) -> bool:
        return step == 1

    def crashed(self, ctx: Context, phase: str) -> bool:
        if phase == "report" and self.mode == "exit":
            os._exit(9)
        while phase == "report":
            time.sleep(0.1)
        return False


def lose_a_rank(store: dist.Store, rank: int, folder: Path, mode: str) -> None:
    config = ProtocolConfig(peers=LOST_AMONG, run_id="lost", validators=1)
    driver = CollectiveDriver(
        config, QuadraticTask(D), Mesh(store, rank, LOST_AMONG, timeout=4), behaviours={2: Stuck(mode)}
    )
    driver.mesh.heed_termination()
    params = torch.ones(D)
    try:
        for _ in range(3):
            params = params - 0.1 * driver.step(params).gradient
    except RankLost as lost:
        (folder / f"{mode}.{rank}").write_text(str(lost))
        os._exit(1)


def main(words: list[str]) -> None:
    mode, folder = words[0], Path(words[1])
    torch.set_num_threads(1)
    store = dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)
    rank = int(os.environ["RANK"])
    if mode == "registry":
        registry(store, rank, folder)
    else:
        lose_a_rank(store, rank, folder, mode)


if __name__ == "__main__":
    main(sys.argv[1:])
