"""A real swarm whose folders are copied in the middle of the run, and as they were before that."""

from __future__ import annotations

import json
import shutil
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from btard.swarm.trainer import Trainer
from btard.watch.serve import Server, Watcher
from tests.albert.watched import Watched
from tests.damage import OLDER
from tests.swarm.test_heal import SOURCE, settings

STEPS = 6
CONFIG = settings(run_id="folders", steps=STEPS, checkpoint_every=2)
MIDDLE = 4
"""Steps of the newest checkpoint in the folders of the middle of the run."""


class Recorded(Watched):
    """Copies the folders as they are in the middle of the run, right after a checkpoint."""

    def __init__(self, out: Path, copies: Path) -> None:
        super().__init__(CONFIG, out / "whole", SOURCE)
        self.copies = copies
        self.server: Server | None = None
        self.shown: list[dict[str, Any]] = []
        self.coordinator.say = self.coordinator.keeper.say = self._heard

    def _heard(self, line: str) -> None:
        self.lines.append(line)
        for step in (OLDER, MIDDLE):
            if line.startswith(f"checkpoint of step {step},"):
                self.coordinator.folder.flush()
                shutil.copytree(self.coordinator.out, self.copies / str(step) / self.coordinator.out.name)
                self.look()

    def look(self) -> None:
        """Keep what a served page has just now: it was begun when it was first asked."""
        if self.server is None:
            self.server = Server(Watcher(self.coordinator.out), 0)
            self._serving = threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True)
            self._serving.start()
        with urllib.request.urlopen(f"{self.server.address}data.json", timeout=30) as answer:
            self.shown.append(json.load(answer))

    def stop(self) -> None:
        """End the server, and write down what its page had."""
        if self.server is not None:
            self.server.shutdown()
            self._serving.join()
            self.server.server_close()
        (self.copies / "shown.json").write_text(json.dumps(self.shown))

    def watch(self, trainer: Trainer) -> None:
        """Copy the trainer's folder, too, a step later. The coordinator gets the time to hear all and to ask."""
        before, honest = trainer._watch, trainer.config.peer not in CONFIG.attackers()

        def watched(phase: str) -> None:
            if phase == "compute" and trainer.peer.t == 0:
                until(lambda: len(self.coordinator.view.attacks) == CONFIG.peers)
            if phase == "compute" and honest and trainer.peer.t + 1 in (OLDER, MIDDLE):
                until(lambda: trainer.peer.t + 1 in trainer.service._wanted)
            if phase == "compute" and trainer.peer.t - 1 in (OLDER, MIDDLE):
                trainer.folder.flush()
                shutil.copytree(trainer.out, self.copies / str(trainer.peer.t - 1) / trainer.out.name)
            before(phase)

        trainer._watch = watched  # type: ignore[method-assign]


def until(condition: Callable[[], bool]) -> None:
    """Wait for it, but not longer than the others wait for a peer."""
    deadline = time.monotonic() + 15
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
