"""The same training on the CPU and on the device: the verdicts are equal, and no honest peer is removed."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from typing import Any

import torch

from btard.aggregation.threads import kernel_threads
from btard.attacks import make_attack
from btard.drivers.local import LocalDriver
from btard.protocol.collusion import Collusion
from btard.protocol.config import ProtocolConfig
from btard.protocol.ledger import Entry
from resnet.gradients import Mode
from scripts.benchmarks.workloads import PEERS, resnet_task
from scripts.gpu_checks.rows import NO_TIME, Row, Setting

ATTACKERS = frozenset(range(9, PEERS))
START = 3
"""The step in which attacks begin."""
STEPS = 30
LEARNING_RATE = 0.05
THREADS = 2
"""On the CPU, where the network is so small that more of them would wait for each other."""
CASES: tuple[tuple[str | None, Mode], ...] = (
    ("sign_flip", "batched"),
    ("alie", "batched"),
    ("wrong_aggregate", "batched"),
    (None, "per_peer"),
    ("sign_flip", "per_peer"),
)
TINY: tuple[tuple[str | None, Mode], ...] = (("wrong_aggregate", "batched"), ("sign_flip", "per_peer"))


class Training:
    """16 peers that train a small ResNet, the last seven of them under `attack`."""

    def __init__(self, device: str, attack: str | None, mode: Mode) -> None:
        task, self.params = resnet_task(4, 8, device, mode)
        collusion = Collusion(ATTACKERS, PEERS, seed=0)
        behaviours = {peer: make_attack(attack, collusion, start=START) for peer in ATTACKERS} if attack else {}
        config = ProtocolConfig(peers=PEERS, byzantine=len(ATTACKERS), run_id="gpu check")
        self.driver = LocalDriver(
            config, task, behaviours=behaviours, collusion=collusion if attack else None, mode=mode
        )
        self.entries: list[Entry] = []
        self.seconds: list[float] = []

    def step(self) -> None:
        started = time.perf_counter()
        result = self.driver.step(self.params)
        self.params = self.params - LEARNING_RATE * result.gradient
        self.entries += result.removed
        self.seconds.append(time.perf_counter() - started)

    def verdicts(self) -> list[tuple[Any, ...]]:
        """Which verdict fell when on whom: what does not depend on the last bits of a gradient."""
        return [(e.step, e.about_step, e.kind, e.verdict, e.accused, e.accusers, e.peers) for e in self.entries]


def rows(setting: Setting) -> Iterator[Row]:
    with kernel_threads(THREADS):
        for (attack, mode), share in setting.shares(TINY if setting.tiny else CASES):
            if share.left <= 0:
                yield Row(f"{attack or 'no attack'}, {mode}", NO_TIME)
            else:
                yield compared(attack, mode, share)


def compared(attack: str | None, mode: Mode, setting: Setting) -> Row:
    """The two trainings, step by step in turns until the time is over; with the CPU as the device, it runs twice."""
    cpu, device = Training("cpu", attack, mode), Training(setting.device, attack, mode)
    for _ in range(START + 2 if setting.tiny else STEPS):
        cpu.step()
        device.step()
        if setting.left <= 0:
            break
    steps, equal = len(cpu.seconds), cpu.verdicts() == device.verdicts()
    same_bytes = [entry.to_json() for entry in cpu.entries] == [entry.to_json() for entry in device.entries]
    removed = {peer for training in (cpu, device) for entry in training.entries for peer in entry.peers}
    honest = sorted(removed - ATTACKERS if attack else removed)
    gap = float((cpu.params - device.params.cpu()).norm() / cpu.params.norm())
    ms = [1e3 * statistics.median(training.seconds) for training in (cpu, device)]
    numbers = {
        "steps": steps,
        "entries on the CPU": [entry.fields() for entry in cpu.entries],
        "entries on the device": [entry.fields() for entry in device.entries],
        "parameters off by": gap,
        "seconds on the CPU": cpu.seconds,
        "seconds on the device": device.seconds,
    }
    return Row(
        f"{attack or 'no attack'}, {mode}, {steps} steps",
        f"{len(cpu.entries)} removals on the CPU, {len(device.entries)} on the device: verdicts "
        f"{'equal' if equal else 'differ'}, bytes {'equal' if same_bytes else 'differ'}; honest peers removed: "
        f"{', '.join(map(str, honest)) or 'none'}; parameters off by {gap:.1e}; {ms[0]:.0f} and {ms[1]:.0f} ms a step",
        equal and not honest and bool(torch.isfinite(device.params).all()),
        numbers,
    )
