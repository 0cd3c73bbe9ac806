"""Who the first peers are: a list of keys that all of them share; a peer's number is its place in it.

A simulation derives the keys from the run's name. A swarm of strangers is given them in a file, or takes them from the
coordinator, which lists the first that have come with its own settings: that much the peers trust it with, and they see
if others were told something else, for the list is part of what they compare before they talk.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from btard.harness.typed_yaml import ConfigError
from btard.protocol import wire
from btard.protocol.hashing import digest
from btard.protocol.identity import Identity
from btard.swarm import frames
from btard.swarm.config import SwarmConfig
from btard.swarm.deadlines import ANSWER
from btard.swarm.doors import HELLO, LOBBY, Doors
from btard.swarm.keys import peer_id_of, public_key_of
from btard.swarm.lines import Once, Say
from btard.swarm.links import Refused
from btard.swarm.node import Node, node_of
from btard.swarm.repeat import repeat

PAUSE = 0.5
"""Seconds between two looks into the DHT."""
REPEAT = 30.0
"""Seconds after which a record is stored again: long before it is forgotten."""
COME, LIST = "come", "founders"
"""The lobby's doors: to compare settings, and to get the list."""
WELCOME = 2**12
"""Number of keys that the lobby remembers, the latest ones: strangers can make any number of keys."""
ADDRESSES, ADDRESS = 8, 200
"""Number of addresses that a peer may claim, and characters of one."""
KNOCK = 5.0
"""Seconds after which a peer that waits for the list asks again."""


class NoFounders(RuntimeError):
    """The list of the first peers did not come: what was waited for, and what to do."""


def founders_digest(founders: tuple[bytes, ...]) -> str:
    """A digest of the list of the first peers: part of what they compare."""
    return digest("founders", *founders).hex()


def come_key(run_id: str) -> str:
    """The DHT key under which peers announce themselves, by public key."""
    return f"btard/{run_id}/come"


def founders_key(run_id: str) -> str:
    """The DHT key under which the coordinator lists the first peers."""
    return f"btard/{run_id}/founders"


def known_founders(config: SwarmConfig) -> tuple[bytes, ...] | None:
    """The keys that follow from the settings; None if the coordinator must list them. Errors: ConfigError."""
    if config.peer is not None:
        return tuple(Identity.from_seed(config.run_id, peer).public_key for peer in range(config.peers))
    if config.network.founders is None:
        return None
    file = Path(config.network.founders)
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
        keys = tuple(bytes.fromhex(line) for line in lines)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file}: cannot be read as a list of public keys ({error}); see network.founders") from None
    if len(keys) != config.peers or any(len(key) != 32 for key in keys) or len(set(keys)) != len(keys):
        raise ConfigError(
            f"{file}: expected {config.peers} different keys of 64 hexadecimal digits, one for each of `peers`, "
            f"got {len(keys)} lines"
        )
    return keys


def trusted_keys(config: SwarmConfig) -> frozenset[bytes]:
    """The keys that the addresses in the settings name, including the coordinator's. Errors: ConfigError."""
    try:
        named = {public_key_of(node_of(address)) for address in config.network.addresses}
    except ValueError as error:
        raise ConfigError(f"network.initial_peers: {error}") from None
    return frozenset(key for key in named if key is not None)


async def announce(node: Node, run_id: str) -> None:
    """Announce repeatedly that this peer is there, and where."""

    async def publish() -> None:
        addresses = [address for address in await node.visible() if len(address) <= ADDRESS]
        await node.publish(come_key(run_id), addresses[:ADDRESSES])

    await repeat("this peer's addresses are not in the DHT", REPEAT, publish)


async def meet(node: Node, run_id: str, keys: Iterable[bytes] | None = None) -> dict[bytes, list[str]]:
    """Public key -> addresses, for all peers that have announced themselves, or for those with these `keys`."""
    said = await node.records(come_key(run_id), None if keys is None else frozenset(keys))
    return {
        author: value[:ADDRESSES]
        for author, value in said.items()
        if isinstance(value, list) and all(_is_address(entry) for entry in value)
    }


def _is_address(entry: Any) -> bool:
    """Whether it can be an address, and can be written and printed."""
    return isinstance(entry, str) and len(entry) <= ADDRESS and entry.isascii() and entry.isprintable()


class Lobby:
    """Where the coordinator compares settings with arriving peers, so that a peer with others gets no seat."""

    def __init__(self, node: Node, config: SwarmConfig, agreed: Mapping[str, Any], say: Say) -> None:
        self.node, self.config, self.say = node, config, say
        self.welcome: dict[bytes, int] = {}
        """Public keys of peers with the same settings, and as the how-manieth each of them came first.

        The peer that has knocked latest is last: waiting peers come again and again."""
        self._came = 0
        self._refused: Once[tuple[bytes, str]] = Once()
        self._doors = Doors(node, config.run_id, agreed, protocol=LOBBY, on_refused=self._on_refused)
        self._doors.add(COME, self._come)
        self._doors.add(LIST, self._give)
        self.listed: tuple[bytes, ...] = ()
        """The first peers, once they are known."""

    async def open(self) -> None:
        """Admit arriving peers, also after the list is made: newcomers compare their settings here, too."""
        await self._doors.open()

    async def list_founders(self, before: tuple[bytes, ...] = ()) -> tuple[bytes, ...]:
        """Wait until `config.peers` have come with the same settings, and list them. Errors: NoFounders.

        `before`: the list of before this process was interrupted, if there was one; it stays.
        """
        self.listed = before or await self._wait()
        return self.listed

    async def _wait(self) -> tuple[bytes, ...]:
        deadline = time.monotonic() + self.config.deadlines.gather
        shown = -1
        while True:
            met = await meet(self.node, self.config.run_id, tuple(self.welcome))
            come = sorted(self.welcome.keys() & met.keys(), key=self.welcome.__getitem__)
            if len(come) != shown:
                shown = len(come)
                self.say(f"{shown} of {self.config.peers} peers have come")
            if len(come) >= self.config.peers:
                return tuple(sorted(come[: self.config.peers]))  # an early peer has a seat; its order is of no use
            if time.monotonic() > deadline:
                refused = len({key for key, _ in self._refused.said} - self.welcome.keys())
                raise NoFounders(
                    f"only {len(come)} of {self.config.peers} peers have come within deadlines.gather = "
                    f"{self.config.deadlines.gather:g} s{f', and {refused} with other settings' if refused else ''}; "
                    "start more trainers, or lower `peers`"
                )
            await asyncio.sleep(PAUSE)

    async def _come(self, key: bytes, arguments: list[Any], *streams: object) -> None:
        self._came += 1
        self.welcome[key] = self.welcome.pop(key, self._came)
        if len(self.welcome) > WELCOME:
            del self.welcome[next(iter(self.welcome))]

    async def _give(
        self, key: bytes, arguments: list[Any], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        if not self.listed:
            raise Refused("founders: they are not listed yet")
        await asyncio.wait_for(frames.send(writer, (LIST, list(self.listed))), ANSWER)

    def _on_refused(self, key: bytes, why: str) -> None:
        self.welcome.pop(key, None)
        if self._refused.new((key, why)):
            self.say(f"{peer_id_of(key).to_base58()} gets no seat; it is told: {why}")


async def give_founders(
    node: Node, config: SwarmConfig, agreed: Mapping[str, Any], founders: tuple[bytes, ...]
) -> None:
    """For any peer: give newcomers the list of the first peers, after their settings (`agreed`) were compared."""
    lobby = Lobby(node, config, agreed, lambda line: None)
    lobby.listed = founders
    await lobby.open()


async def publish_founders(node: Node, run_id: str, founders: tuple[bytes, ...]) -> None:
    """For the coordinator: announce repeatedly who the first peers are."""
    what = "the list of the first peers is not in the DHT"  # then each peer gives it in its lobby
    await repeat(what, REPEAT, lambda: node.publish(founders_key(run_id), list(founders)))


async def learn_founders(node: Node, config: SwarmConfig, agreed: Mapping[str, Any], say: Say) -> tuple[bytes, ...]:
    """For a trainer: wait for the list of the coordinator, or of another peer that has it.

    It trusts the peers that the addresses in the settings name. The first peers have to name the coordinator, which
    lists those that come to it; later ones may name anybody. Errors: NoFounders; ConfigError without addresses, for
    addresses that name nobody, and for settings (`agreed`) that are not those of the peers that they name.
    """
    trusted = trusted_keys(config)
    if not trusted:
        raise ConfigError("network.initial_peers is null: give the address that the coordinator prints")
    lobby = Doors(node, config.run_id, agreed, protocol=LOBBY)
    deadline = time.monotonic() + config.deadlines.gather
    knocked: float | None = None
    while True:
        if knocked is None or time.monotonic() - knocked > KNOCK:  # again: a coordinator may have been started anew
            if knocked is None:
                say("waiting for the coordinator to list the first peers")
            knocked = time.monotonic()
            for given in await asyncio.gather(*(_come(lobby, key) for key in trusted)):
                if given is not None:
                    return _keys(given, config)
        for value in (await node.records(founders_key(config.run_id), trusted)).values():
            return _keys(value, config)
        if time.monotonic() > deadline:
            raise NoFounders(
                f"run {config.run_id}: no list of its first peers from "
                f"{', '.join(peer_id_of(key).to_base58() for key in trusted)} within deadlines.gather = "
                f"{config.deadlines.gather:g} s; check run_id, and that the coordinator and {config.peers} trainers run"
            )
        await asyncio.sleep(PAUSE)


async def _come(lobby: Doors, key: bytes) -> Any:
    """Tell the holder of `key` that this peer is there, with these settings; returns its list, None if it has none.

    Errors: ConfigError if it has other settings.
    """
    try:
        async with lobby.visit(key, COME):
            pass
    except Refused as refused:
        raise ConfigError(f"{peer_id_of(key).to_base58()} refuses this peer: {refused}") from None
    except Exception:
        return None  # not there: the list may be known without it
    try:
        async with lobby.visit(key, LIST) as (reader, _):
            answer = await asyncio.wait_for(frames.receive(reader, HELLO, LIST), ANSWER)
            return wire.check_fields(answer, LIST, 2)[1] if answer[:1] == [LIST] else None
    except Exception:  # it has none yet, or has gone
        return None


def _keys(value: Any, config: SwarmConfig) -> tuple[bytes, ...]:
    try:
        keys = wire.check_list(value, "founders", wire.check_digest, max_len=config.peers)
    except wire.Malformed as error:
        raise NoFounders(f"the coordinator's list of the first peers is broken: {error}") from None
    if len(keys) != config.peers or len(set(keys)) != len(keys):
        raise NoFounders(
            f"the coordinator lists {len(keys)} first peers, this configuration has peers = {config.peers}; "
            "use the same configuration"
        )
    return keys
