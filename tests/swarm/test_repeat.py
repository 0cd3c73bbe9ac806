"""What is done again and again goes on after it has failed."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from btard.protocol.identity import Identity
from btard.swarm import founding, notes
from btard.swarm import node as node_module
from btard.swarm.node import Node
from btard.swarm.notes import SWARM, Notes

ENOUGH = 4


class Enough(BaseException):
    """Ends what would go on for ever."""


class Hiccups:
    """Stands in for a node, and for the disk: each second attempt to publish, to look or to write fails."""

    identity = Identity.from_seed("hiccups")
    initial_peers = ("/ip4/127.0.0.1/tcp/1",)

    def __init__(self) -> None:
        self.attempts = 0

    def fail(self) -> None:
        self.attempts += 1
        if self.attempts > ENOUGH:
            raise Enough
        if self.attempts % 2 == 0:
            raise OSError(errno.ENOSPC, "No space left on device")

    async def visible(self) -> list[str]:
        return ["/ip4/127.0.0.1/tcp/1"]

    async def publish(self, key: str, value: Any) -> None:
        self.fail()

    async def meet_again(self, addresses: Any) -> None:
        self.fail()

    async def records(self, key: str, authors: Any) -> dict[bytes, Any]:
        return {b"k" * 32: ["/ip4/127.0.0.1/tcp/1"]}


LOOPS: dict[str, Callable[[Any, Path], Any]] = {
    "addresses": lambda node, out: founding.announce(node, "run"),
    "first peers": lambda node, out: founding.publish_founders(node, "run", ()),
    "notes": lambda node, out: Notes(out).keep(node, "run", (), lambda: [b"k" * 32]),
    "relays": lambda node, out: Node._keep_relays(node),
}


@pytest.mark.parametrize("what", LOOPS)
def test_a_hiccup_ends_nothing_and_is_said_once(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    node = Hiccups()

    def write(file: Path, content: Any) -> None:
        assert file.name == SWARM
        try:
            node.fail()
        except Enough as enough:
            raise asyncio.CancelledError from enough  # what a thread can hand on

    monkeypatch.setattr(notes, "write", write)
    for module, name in ((founding, "REPEAT"), (notes, "EVERY"), (node_module, "KEEP")):
        monkeypatch.setattr(module, name, 0.0)
    with pytest.raises((Enough, asyncio.CancelledError)):
        asyncio.run(LOOPS[what](node, tmp_path))
    said = capsys.readouterr().err
    assert node.attempts > ENOUGH and said.count("\n") == 1 and said.endswith("No space left on device\n"), said
