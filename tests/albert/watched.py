"""A whole swarm in threads of one process, with the coordinator that watches it."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from btard.swarm.config import SwarmConfig
from btard.swarm.coordinator import Coordinator
from btard.swarm.task import TaskSource
from tests.albert.trainers import SOURCE, Trainers

ADDRESS = "address: "


class Watched:
    """`coordinator` and `trainers`. Peers have keys of their own, as strangers do, unless the settings number them."""

    def __init__(self, config: SwarmConfig, out: Path, source: TaskSource = SOURCE) -> None:
        self.config, self.out, self.lines = config, out, list[str]()
        self.trainers = Trainers(config, out, source=source)
        self.coordinator = Coordinator(config, out / "coordinator", source, say=self.lines.append)
        self.end: Any = None

    def run(self, **of_peers: dict[str, Any]) -> dict[str, Any]:
        """Run to the end, with changes to the settings of `peer_NUMBER`; returns the coordinator's summary."""
        watching = threading.Thread(target=self._watch, name="coordinator")
        watching.start()
        address = self._address()
        network = replace(self.config.network, initial_peers=address)
        for number in self.trainers.numbers:
            seat = None if self.config.peer is None else number
            self.trainers.make(number, peer=seat, network=network, **of_peers.get(f"peer_{number}", {}))
        for number in self.trainers.numbers:
            self.trainers.start(number)
        watching.join(110)
        assert not watching.is_alive(), self.lines
        if isinstance(self.end, BaseException):
            raise self.end
        self.trainers.wait()
        return self.end

    def _watch(self) -> None:
        try:
            self.end = self.coordinator.run()
        except BaseException as error:
            self.end = error

    def _address(self) -> str:
        """What the coordinator says: its file may still be the one of a former run, at a port that others have now."""
        deadline = time.monotonic() + 30
        while not (said := [line for line in self.lines if line.startswith(ADDRESS)]):
            assert self.end is None and time.monotonic() < deadline, self.end
            time.sleep(0.05)
        return said[0].removeprefix(ADDRESS)
