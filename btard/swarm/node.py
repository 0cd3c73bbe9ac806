"""This process's place in the swarm: a libp2p daemon, a DHT node, and the event loop in which all talking happens.

The loop has a thread of its own, so that peers are answered while the main thread computes.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import socket
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Collection, Coroutine, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Literal, TypeVar

import uvloop
from hivemind.dht.node import DHTNode
from hivemind.p2p import P2P, P2PDaemonError, PeerID
from hivemind.p2p.p2p_daemon_bindings.datastructures import StreamInfo
from hivemind.utils import get_dht_time
from hivemind.utils.multiaddr import Multiaddr

from btard.protocol import wire
from btard.protocol.identity import Identity
from btard.swarm.cancel import cancel
from btard.swarm.keys import peer_id_of, write_identity
from btard.swarm.records import HEAD, MAX_RECORD, Signed
from btard.swarm.relay import Relay
from btard.swarm.repeat import repeat

T = TypeVar("T")
Relaying = Literal["none", "use", "serve"]
Handler = Callable[[StreamInfo, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

START, AGAIN = 60.0, 0.5
"""Seconds in which daemon and DHT must come up, and between two attempts: the first member may come up meanwhile."""
PATIENCE, END = 3.0, 15.0
"""Seconds that each part has to end, and all of them with the thread."""
PING = 3.0
"""Seconds in which a peer at a known address must answer."""
KNOWN = 32
"""Number of others' addresses that are tried at the start, in addition to those in the settings."""
KEEP = 5.0
"""Seconds after which a peer that is reached through relays checks whether they are there."""
LOOK = 10.0
"""Seconds in which the DHT must answer."""
RECORD_LIFE = 120.0
"""Seconds that a record is kept; its author stores it again before that."""


class Unreachable(RuntimeError):
    """The swarm, or this process's own daemon, could not be reached: where, and what to do."""


class Daemon(P2P):
    """hivemind's daemon with an option that `P2P.create` does not pass on."""

    @staticmethod
    def _make_process_args(*words: Any, **options: Any) -> list[str]:
        if "trustedRelays" in options:
            # Else the daemon waits three minutes for four relays to choose from, and nobody reaches this peer so long.
            options["relayDiscovery"] = False
        made: list[str] = P2P._make_process_args(*words, **options)
        return made


class Node:
    """A libp2p daemon with the identity's key and a DHT node, started by `start` and ended by `close`.

    `host`: the IP to listen on; `port`: 0 for any; `announce`: the IP that others reach us at, if it is another one;
    `initial_peers`: multiaddrs of anybody in the swarm, none for its first member. `relay`: whether to be reached
    through those of them that serve as relays, or to serve as one, which takes an address that all can reach.
    `before`: the port of last time, taken again if none is asked for and nobody has it now. `known`: what others have
    said of where they are; they are tried if none of `initial_peers` is there.
    """

    daemon: type[P2P] = Daemon

    def __init__(
        self,
        identity: Identity,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        announce: str | None = None,
        initial_peers: Sequence[str] = (),
        relay: Relaying = "none",
        before: int = 0,
        known: Sequence[str] = (),
    ) -> None:
        self.identity, self.host, self.port, self.announce = identity, host, port, announce
        self.initial_peers, self.relay, self.before = tuple(initial_peers), relay, before
        self.known = tuple(address for address in known if _is_of_peer(address))[:KNOWN]
        self.p2p: P2P
        self.dht: DHTNode
        self._loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="network", daemon=True)
        self._tasks: set[asyncio.Task[Any]] = set()

    @property
    def addresses(self) -> list[str]:
        """Multiaddrs at which others reach this node; those that only lead there on this machine come last."""
        return self.run(self.visible())

    async def visible(self) -> list[str]:
        """`addresses`, for the network's thread."""
        found = [str(address) for address in await self.p2p.get_visible_maddrs()]
        return sorted(found, key=lambda address: address.startswith("/ip4/127."))

    def start(self, timeout: float = START) -> Node:
        """Start the daemon and join the DHT. Errors: Unreachable."""
        self._thread.start()
        try:
            self.run(self._start(timeout))
        except (P2PDaemonError, RuntimeError, OSError, ValueError, asyncio.TimeoutError) as error:
            self.close()
            if _cannot_listen(error):
                why = f"cannot listen at {self.host}, port {self.port} ({error}); change network.host or network.port"
            elif self.initial_peers:
                why = (
                    f"the swarm at {', '.join(self.initial_peers)} could not be reached ({error}); check "
                    "network.initial_peers, that the first member runs, and that no firewall is in between"
                )
            else:
                why = f"the libp2p daemon did not start ({type(error).__name__}: {error}); see to network.host"
            raise Unreachable(why) from None
        return self

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Do `work` in the network's thread and wait for its result. Errors: Unreachable if the daemon has ended."""
        if self._ended is not None:
            work.close()
            raise Unreachable(f"the libp2p daemon has ended (exit code {self._ended}); the same command goes on")
        return self.submit(work).result()

    def submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Start `work` in the network's thread, to be cancelled by `close` at the latest. Call it from that thread."""
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def close(self) -> None:
        """End the daemon and the thread."""
        if not self._thread.is_alive():
            return
        try:
            self.submit(self._stop()).result(timeout=END)
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(timeout=END)

    async def meet_again(self, addresses: Sequence[str]) -> None:
        """Rejoin the swarm through any peer that is still at one of `addresses`; the others cost nothing."""

        async def ask(address: str) -> None:
            peer = node_of(address)
            await self.p2p._client.connect(peer, [Multiaddr(address).decapsulate(Multiaddr(f"/p2p/{peer}"))])
            await self.dht.protocol.call_ping(peer)

        asked = [asyncio.wait_for(ask(address), PING) for address in addresses]
        await asyncio.gather(*asked, return_exceptions=True)

    async def listen(self, protocol: str, handler: Handler) -> None:
        """Call `handler` for every stream that is opened to `protocol`; it must not raise."""
        await self.p2p.add_binary_stream_handler(protocol, handler)

    async def dial(self, key: bytes, protocol: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A stream to the holder of `key`. Errors: P2PDaemonError, OSError, IncompleteReadError if it does not answer.

        The daemon has checked by its handshake that it is really that key's holder.
        """
        _, reader, writer = await self.p2p.call_binary_stream_handler(peer_id_of(key), protocol)
        return reader, writer

    async def publish(self, key: str, value: Any) -> bool:
        """Store this node's entry under `key` for `RECORD_LIFE` seconds; False if nobody took it in time."""
        body, me = wire.pack(value), self.identity.public_key.hex()
        if HEAD + len(body) > MAX_RECORD:
            raise ValueError(f"a record of {HEAD + len(body)} bytes does not fit into the DHT, at most {MAX_RECORD} do")
        return bool(await _in_time(self.dht.store(key, body, get_dht_time() + RECORD_LIFE, subkey=me)))

    async def records(self, key: str, authors: Collection[bytes] | None = None) -> dict[bytes, Any]:
        """Public key -> value, of the entries under `key` that their authors have stored lately; none if none come.

        The time that they gave counts. `authors`: those of interest, None for all. Others, of which strangers can make
        any number, are not decoded.
        """
        found = await _in_time(self.dht.get(key, latest=True))
        entries = {} if found is None else {bytes.fromhex(author): entry for author, entry in found.value.items()}
        records: dict[bytes, Any] = {}
        for author in entries if authors is None else entries.keys() & authors:
            body, expires = entries[author]
            if not abs(get_dht_time() + RECORD_LIFE - expires) <= RECORD_LIFE:
                continue
            with contextlib.suppress(wire.Malformed):
                records[author] = wire.unpack(body, max_bytes=MAX_RECORD, what="record")
        return records

    @property
    def _ended(self) -> int | None:
        """The exit code of the daemon; None as long as it runs."""
        child = self.p2p._child if hasattr(self, "p2p") else None
        return None if child is None else child.returncode

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    async def _start(self, timeout: float) -> None:
        _try_to_listen(self.host, self.port)
        port = self.port or (self.before if _is_free(self.host, self.before) else 0)
        listen = [f"/ip4/{self.host}/tcp/{port}"]
        announce = [f"/ip4/{self.announce}/tcp/{self.port}"] if self.announce else None
        for address in self.initial_peers:
            node_of(address)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "identity"
            write_identity(self.identity, file)
            deadline = time.monotonic() + timeout
            for meeting in itertools.cycle(dict.fromkeys([self.initial_peers, self.initial_peers + self.known])):
                try:
                    self.p2p = await self.daemon.create(
                        initial_peers=meeting,
                        identity_path=str(file),
                        host_maddrs=listen,
                        announce_maddrs=announce,
                        check_if_identity_free=False,
                        nat_port_map=False,
                        auto_nat=False,
                        use_relay=self.relay != "none",
                        use_auto_relay=self.relay == "use",
                        trusted_relays=self.initial_peers if self.relay == "use" else None,
                        # Found out by the daemon itself it would take more peers than a small swarm has.
                        force_reachability="private" if self.relay == "use" else None,
                        startup_timeout=timeout,
                    )
                    break
                except P2PDaemonError as error:  # the first member may come up at this moment
                    if time.monotonic() > deadline or _cannot_listen(error):
                        raise
                    await asyncio.sleep(AGAIN)
        if self.relay == "serve":
            await Relay(self.p2p).open()
        self.dht = await DHTNode.create(
            p2p=self.p2p,
            initial_peers=meeting,
            bootstrap_timeout=timeout,
            ensure_bootstrap_success=False,
            record_validator=Signed(self.identity),
        )
        if self.relay == "use":
            self.spawn(self._keep_relays())

    async def _keep_relays(self) -> None:
        """Stay connected to the relays, also after they were gone: others cannot be reached through them otherwise."""
        await repeat("the relays are not looked for", KEEP, lambda: self.meet_again(self.initial_peers))

    async def _stop(self) -> None:
        for task in tuple(self._tasks):
            task.cancel()
        reading = self.p2p._client.control._read_task if hasattr(self, "p2p") else None
        alive = self._ended is None  # else it would be waited for in vain
        for part in ("dht", "p2p") if alive else ("p2p",):
            if hasattr(self, part):
                with contextlib.suppress(asyncio.TimeoutError, P2PDaemonError, OSError):
                    await asyncio.wait_for(getattr(self, part).shutdown(), PATIENCE)
        if reading is not None:  # its error, where the daemon has died, is nobody's
            await asyncio.wait([reading], timeout=PATIENCE)
            if reading.done() and not reading.cancelled():
                reading.exception()
        # What still serves or asks somebody ends here, before the loop does.
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(cancel(*asyncio.all_tasks() - {asyncio.current_task()}), PATIENCE)


def _is_of_peer(address: str) -> bool:
    try:
        node_of(address)
    except ValueError:
        return False
    return True


def _is_free(host: str, port: int) -> bool:
    try:
        _try_to_listen(host, port)
    except OSError:
        return False
    return True


def _try_to_listen(host: str, port: int) -> None:
    """Errors: OSError if the port is not free: the daemon would share it silently with another daemon of ours."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections of before that fade out do not matter
        probe.bind((host, port))


def _cannot_listen(error: Exception) -> bool:
    return "failed to listen" in str(error) or getattr(error, "errno", None) in (errno.EADDRINUSE, errno.EADDRNOTAVAIL)


def node_of(address: str) -> PeerID:
    """The peer id at the end of a multiaddr. Errors: ValueError, in one line, if it has none."""
    try:
        return PeerID.from_base58(Multiaddr(address)["p2p"])
    except Exception:
        raise ValueError(
            f"{address!r} is no address of a peer, expected something like /ip4/10.0.0.1/tcp/31337/p2p/12D3KooW..."
        ) from None


async def _in_time(asked: Awaitable[T]) -> T | None:
    """The DHT's answer; None if it has none within `LOOK` seconds, whatever has become of the search."""
    try:
        return await asyncio.wait_for(asked, LOOK)
    except asyncio.TimeoutError:
        return None
