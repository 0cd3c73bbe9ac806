"""What the measure of the swarm's rounds says of delays, and of options that cannot be."""

from __future__ import annotations

import time
from collections.abc import Mapping

import pytest

from btard.drivers.letters import Letters
from btard.drivers.local import LocalDriver
from btard.drivers.loop import Heard
from btard.protocol.config import ProtocolConfig
from btard.protocol.memory import NOTHING
from btard.task import QuadraticTask
from scripts import netns, rounds, swarm_rounds


@pytest.mark.parametrize("relays", [0, 1, 3])
def test_delays_of_a_step_without_faults(relays: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """6 with a network that is trusted; else 7, at any number of relays: all peers are settled in their rounds."""
    import torch

    phases: list[str] = []
    config = ProtocolConfig(peers=8, byzantine=3, relays=relays, validators=0, tau=1.0)
    driver = LocalDriver(config, QuadraticTask(20), memory=NOTHING)  # as on machines of their own
    talk = driver.talk

    def counted(step: int, letters: Mapping[int, Letters]) -> Heard:
        phases.extend({said.phase for said in letters.values() if not said.settled})
        return talk(step, letters)

    monkeypatch.setattr(driver, "talk", counted)
    driver.step(torch.ones(20))
    assert len(phases) == (7 if relays else 6)
    kinds = [rounds.kind(phase) for phase in phases]
    assert kinds.count("commit") == 1
    assert not any(kind.endswith(", relay") for kind in kinds)
    assert sum(kind.endswith(", compare") for kind in kinds) == (1 if relays else 0)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--cases", "4"], "--cases: expected PEERSxD"),
        (["--cases", "2x100"], "--cases: expected PEERSxD"),
        (["--delay", "-1"], "--delay is at least 0"),
        (["--rate", "0"], "--rate more than 0"),
        (["--loss", "1"], "--loss from 0 to less than 1"),
        (["--relays", "two"], "invalid literal"),
    ],
)
def test_options_that_cannot_be(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert swarm_rounds.main(["--out", "rounds.json", *words]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.skipif(netns.reason_not_to() is not None, reason=str(netns.reason_not_to()))
def test_a_line_carries_one_packet_after_another() -> None:
    with netns.Wire(3, delay=0.1, rate=1000.0) as wire:
        now = time.monotonic()
        first, second = wire._through(0, 1, 500), wire._through(0, 2, 500)
        assert 0.6 <= first - now < 0.7 and second - first == pytest.approx(0.5)
        assert wire._through(2, 1, 500) - first == pytest.approx(0.5), "what comes in takes its time, too"
