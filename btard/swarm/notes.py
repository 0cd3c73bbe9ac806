"""What a process of a swarm notes for its next start: its address, where the others are, and in which life it is."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from btard.files import write_file
from btard.protocol.hashing import digest
from btard.swarm.founding import meet
from btard.swarm.node import Node
from btard.swarm.repeat import repeat

ADDRESS, SWARM, LIVES = "address.txt", "swarm.json", "lives.json"
EVERY = 5.0
"""Seconds between two notes of where the peers are."""


class Notes:
    """The notes in run folder `out`."""

    def __init__(self, out: Path) -> None:
        self.out = Path(out)

    @property
    def port(self) -> int:
        """The port of last time, 0 if there was none: addresses handed out then stay valid."""
        try:
            found = re.search(r"/tcp/(\d{1,5})/", (self.out / ADDRESS).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return 0
        port = int(found[1]) if found else 0
        return port if port < 2**16 else 0

    @property
    def addresses(self) -> list[str]:
        """Where other peers were, some of which may still be there."""
        return self._strings("addresses")

    @property
    def founders(self) -> tuple[bytes, ...]:
        """The first peers' keys, if they were known."""
        try:
            keys = [bytes.fromhex(key) for key in self._strings("founders")]
        except ValueError:  # damaged
            return ()
        return tuple(keys)

    @property
    def lives(self) -> tuple[bytes | None, dict[bytes, int]]:
        """The name of the life that the folder is in, None before the first; and those it has left, see `life.Left`."""
        content = read(self.out / LIVES)
        try:
            return bytes.fromhex(content["life"]), {bytes.fromhex(old): int(at) for old, at in content["left"].items()}
        except (KeyError, TypeError, ValueError, AttributeError):  # none, or damaged
            return None, {}

    def write_lives(self, life: bytes, left: Mapping[bytes, int]) -> None:
        """Note in which life the folder is from now on."""
        write(self.out / LIVES, {"life": life.hex(), "left": {old.hex(): step for old, step in left.items()}})

    def write_address(self, address: str) -> None:
        """Note where this process is: what others give as network.initial_peers."""
        write_file(self.out / ADDRESS, address + "\n")

    async def keep(
        self, node: Node, run_id: str, founders: tuple[bytes, ...], members: Callable[[], Iterable[bytes]]
    ) -> None:
        """Write repeatedly who the first peers are, and where the `members` (public keys) can be found.

        First an address of each, in an order that is another one for each process, so that nobody who claims many takes
        others' places. Strangers are left out: their keys cost nothing.
        """
        me = node.identity.public_key

        async def note() -> None:
            met = await meet(node, run_id, members())
            met.pop(me, None)
            if met:
                order = sorted(met, key=lambda key: digest("noted", me, key))
                rounds = itertools.zip_longest(*(met[key] for key in order))
                addresses = [address for found in rounds for address in found if address is not None]
                content = {"founders": [key.hex() for key in founders], "addresses": addresses}
                await asyncio.to_thread(write, self.out / SWARM, content)  # a disk may take its time

        await repeat("where the others are is not noted", EVERY, note)

    def _strings(self, name: str) -> list[str]:
        found = read(self.out / SWARM).get(name)
        return [str(entry) for entry in found] if isinstance(found, list) else []


def write(file: Path, content: Mapping[str, Any]) -> None:
    """Write JSON to a file that appears complete or not at all."""
    write_file(file, json.dumps(content) + "\n")


def read(file: Path) -> dict[str, Any]:
    """What `write` has written, or nothing."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
