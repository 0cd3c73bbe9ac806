"""The runs of the golden record, and how each is put into JSON values. Only this file knows the project's code."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import torch
from blake3 import blake3
from safetensors.torch import load_file

from btard.attacks import make_attack
from btard.audit.recorder import Recorder
from btard.drivers.local import LocalDriver
from btard.protocol.collusion import Collusion
from btard.protocol.config import ProtocolConfig
from btard.protocol.identity import Identity
from btard.protocol.peer import Peer
from btard.task import QuadraticTask
from scripts import mixtures
from tests.protocol import matrix
from tests.protocol.cohort import FIXED, Run
from tests.protocol.rows import ROWS

ROOT = Path(__file__).resolve().parents[2]
SOAK_SEEDS = 50

VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "tolerant": {"validation": "tolerant"},
    "ideal": {"commitments": "ideal"},
    "probation": {"probation": 3},
}
"""Settings under which one row for each attack is played again."""

QUICKSTART: Mapping[str, Sequence[str]] = {
    "no_attack": ("--byzantine=0", "--aggregator.name=mean"),
    "undefended": ("--byzantine=7", "--attack.name=sign_flip", "--aggregator.name=mean"),
    "btard": ("--byzantine=7", "--attack.name=sign_flip", "--aggregator.name=btard"),
}
SHORT = (
    *("--steps=8", "--attack.start=2", "--eval_every=4", "--checkpoint_every=4", "--test_samples=50", "--threads=1"),
    *("--protocol.tau=1.0", "--protocol.tau_start=1.0"),
)
PROCESSES = ("--peers=4", "--byzantine=1", "--attack.name=sign_flip", "--model.width=2", "--batch_size=4")
DIGITS = "configs/resnet/digits.yaml"

Fields = dict[str, Any]
Said = dict[int, dict[int, list[str]]]
"""Step -> peer -> the names of its effects, in order."""


@dataclass(frozen=True)
class Case:
    """One run of the record; `play` makes it and returns its fields, JSON values."""

    section: str
    name: str
    seed: int
    play: Callable[[Path], Fields]
    """Called with an empty folder that is removed afterwards."""


def cases(sections: Sequence[str], seeds: int) -> Iterator[Case]:
    """All runs of `sections`; each row of the matrix with `seeds` seeds."""
    if "matrix" in sections:
        for row in ROWS:
            for seed in range(seeds):
                yield Case("matrix", str(row), seed, _matrix(row, seed))
    if "soak" in sections:
        for seed in range(SOAK_SEEDS):
            yield Case("soak", "mixture", seed, _soak(seed))
    if "variants" in sections:
        for name, settings in VARIANTS.items():
            for row in {row.attack: row for row in reversed(ROWS)}.values():
                varied = replace(row, settings={**row.settings, **settings})
                yield Case("variants", f"{name}: {row}", 0, _matrix(varied, 0, proofs=name != "ideal"))
        yield Case("variants", "newcomers", 0, _newcomers)
    if "resnet" in sections:
        for name, words in QUICKSTART.items():
            yield Case("resnet", name, 0, _resnet(words))
    if "torchrun" in sections:
        yield Case("torchrun", "a process for each of 4 peers", 0, _torchrun)
    if "swarm" in sections:
        yield Case("swarm", "4 trainers, one wrong aggregate", 0, _swarm)


def record(case: Case) -> Fields:
    """The run's results; if it failed, the error and the effects up to it."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            fields: Fields = json.loads(json.dumps(case.play(Path(folder))))  # what another process would read
            return fields
        except Exception as error:
            return {"error": f"{type(error).__name__}: {error}".replace(folder, "FOLDER")}


def _matrix(row: matrix.Row, seed: int, *, proofs: bool = True) -> Callable[[Path], Fields]:
    return lambda folder: _cohort(lambda: matrix.play(row, seed, folder if proofs else None)[0], folder)


def _soak(seed: int) -> Callable[[Path], Fields]:
    """Every sixth mixture has up to 32 peers, the others, which take less time, up to 12."""
    largest = 32 if seed % 6 == 5 else 12
    return lambda folder: _cohort(lambda: mixtures.play(mixtures.draw(seed, largest=largest), proofs=folder), folder)


def _newcomers(folder: Path) -> Fields:
    """Two peers, one of them an attacker, ask to join a cohort of five, while a first peer attacks as well."""

    def play() -> Run:
        config = ProtocolConfig(peers=5, byzantine=1, probation=3, run_id="newcomers", **FIXED)
        collusion = Collusion(frozenset({2, 6}), 7)
        attackers = {peer: make_attack("sign_flip", collusion, start=12) for peer in (2, 6)}
        driver = LocalDriver(
            config,
            QuadraticTask(matrix.D),
            behaviours={2: attackers[2]},
            collusion=collusion,
            recorder=Recorder(folder, config),
        )
        driver.join(Identity.from_seed("newcomer", 5))
        driver.join(Identity.from_seed("newcomer", 6), attackers[6])
        params, results = torch.ones(matrix.D), []
        for _ in range(40):
            results.append(driver.step(params))
            params = params - 0.1 * results[-1].gradient
        return Run(driver, params, results)

    return _cohort(play, folder)


def _resnet(words: Sequence[str]) -> Callable[[Path], Fields]:
    def play(folder: Path) -> Fields:
        from resnet.config import load_config  # brings packages that most runs do without
        from resnet.training import train

        config, out = load_config([DIGITS, "--out", str(folder), *words, *SHORT])
        with effects_named() as said:
            train(config, out, progress=False, events=False)
        return {"effects": grouped(said), **_folder(out)}

    return play


def _torchrun(folder: Path) -> Fields:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=4", "-m"]
    command += ["resnet.train", DIGITS, "--out", str(folder), *PROCESSES, *SHORT]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return _folder(folder)


def _swarm(folder: Path) -> Fields:
    """Deadlines so long that a slow machine misses none."""
    from albert.config import Config
    from albert.data.options import Options
    from albert.data.preparation import prepare
    from btard.swarm.config import AttackConfig
    from btard.swarm.deadlines import Deadlines
    from tests.albert.trainers import Trainers, tiny

    data, out = folder / "data", folder / "swarm"
    prepare(Options("synthetic", tokenizer=None, vocab_size=2_000, sequence_length=64), data, progress=False)
    deadlines = Deadlines(compute=120, phase=60, message=0.2, uplink=8, give_up=60, gather=120)
    attack = AttackConfig(name="wrong_aggregate", start=2)
    protocol = replace(Config().protocol, max_absences=50, tau=0.125, tau_start=1.0, heal="off")
    trainers = Trainers(tiny(data, steps=5, byzantine=1, attack=attack, deadlines=deadlines, protocol=protocol), out)
    try:
        with effects_named() as said:
            ends = trainers.run()
    finally:
        trainers.close()
    ended = {str(peer): end if isinstance(end, dict) else repr(end) for peer, end in sorted(ends.items())}
    return {"ends": ended, "effects": grouped(said), **_folder(out), "data": digests(data)}


def _cohort(play: Callable[[], Run], proofs: Path) -> Fields:
    with effects_named() as said:
        run = play()
    ledger = run.driver.honest[0].ledger
    return {
        "steps": len(run.results),
        "head": ledger.head.hex(),
        "entries": [json.loads(entry.to_json()) for entry in ledger.entries],
        "coins": [result.coin.hex() for result in run.results],
        "parameters": blake3(run.params.numpy().tobytes()).hexdigest(),
        "sent": sent_by_peer([result.sent for result in run.results]),
        "effects": grouped(said),
        "proofs": digests(proofs),
    }


@contextmanager
def effects_named() -> Iterator[Said]:
    """Every peer's effects in all steps inside the block, seen from outside the peer."""
    said: Said = {}
    original = Peer.step

    def step(self: Peer) -> Generator[Any, Any, Any]:
        names = said.setdefault(self.t, {}).setdefault(self.id, [])
        running, answer = original(self), None
        while True:
            try:
                effect = running.send(answer)
            except StopIteration as end:
                return end.value
            names.append(f"{type(effect).__name__} {effect.phase}")
            if getattr(effect, "quiet", False):  # all rounds, also those that one process skips
                effect = msgspec.structs.replace(effect, quiet=False)  # type: ignore[type-var]
            answer = yield effect

    Peer.step = step  # type: ignore[method-assign]
    try:
        yield said
    finally:
        Peer.step = original  # type: ignore[method-assign]


def grouped(said: Said) -> list[dict[str, str]]:
    """For each step: its sequences of effects, and which peers had them (`0 1 3`)."""
    steps = []
    for step in sorted(said):
        peers: dict[str, list[int]] = {}
        for peer, names in sorted(said[step].items()):
            peers.setdefault(", ".join(names), []).append(peer)
        steps.append({" ".join(map(str, who)): names for names, who in peers.items()})
    return steps


def sent_by_peer(steps: Sequence[dict[int, int]]) -> dict[str, list[int]]:
    """Peer -> bytes it sent in each step in which it was there."""
    peers = sorted({peer for sent in steps for peer in sent})
    return {str(peer): [sent[peer] for sent in steps if peer in sent] for peer in peers}


def digests(folder: Path) -> dict[str, str]:
    """File below `folder` -> BLAKE3 of its bytes."""
    return {name: blake3(file.read_bytes()).hexdigest() for name, file in files(folder).items()}


def files(folder: Path) -> dict[str, Path]:
    """Relative path -> file, of all below `folder`, by name."""
    found = sorted(file for file in folder.rglob("*") if file.is_file())
    return {file.relative_to(folder).as_posix(): file for file in found}


def _folder(out: Path) -> Fields:
    """A run folder without times, TensorBoard's events and ports: lines of what people read, digests of the rest."""
    fields: Fields = {}
    for name, file in files(out).items():
        if file.name in ("timings.jsonl", ".lock") or "tfevents" in file.name:
            continue
        if file.suffix in (".jsonl", ".yaml") or file.name == "summary.json":
            text = file.read_text(encoding="utf-8").replace(str(out.parent), "FOLDER")
            fields[name] = re.sub(r"/tcp/\d+", "/tcp/PORT", text).splitlines()
        else:
            fields[name] = blake3(file.read_bytes()).hexdigest()
        if file.suffix == ".safetensors" and file.parent.name != "evidence":
            tensors = sorted(load_file(file).items())
            fields[f"{name}, tensors"] = {key: blake3(x.numpy().tobytes()).hexdigest() for key, x in tensors}
    return fields
