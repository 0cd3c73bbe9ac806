"""libp2p daemons that outlive a cohort. To start one takes more CPU time than several steps of a small swarm."""

from __future__ import annotations

import asyncio
import atexit
import threading
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any

import uvloop
from hivemind.p2p import P2P
from hivemind.utils.multiaddr import Multiaddr

from btard.swarm.keys import load_identity
from btard.swarm.node import Daemon, Node, node_of


class Daemons:
    """The daemons of this process, by public key. Peers of two cohorts that have the same keys use the same ones."""

    def __init__(self) -> None:
        self._loop = uvloop.new_event_loop()
        self._thread: threading.Thread | None = None
        self._running: dict[bytes, Daemon] = {}
        self._stale = False

    def renew(self) -> None:
        """Have new ones started if one was killed: the others would go on dialling where that one was."""
        if self._stale:
            self.close()

    def kill(self, node: Node) -> None:
        """Kill the daemon of `node`, as kill -9 does."""
        self._stale = True
        daemon = self._running.pop(node.identity.public_key)
        self._run(self._kill(daemon))
        node.p2p._child = daemon._child  # the node sees that it has ended

    def close(self) -> None:
        """End all of them."""
        daemons, self._running, self._stale = list(self._running.values()), {}, False
        for daemon in daemons:
            self._run(self._end(daemon))

    async def lend(self, identity_path: str, options: dict[str, Any]) -> Multiaddr:
        """Where the daemon with this key listens to its clients; it is started if need be."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._loop.run_forever, name="daemons", daemon=True)
            self._thread.start()
            atexit.register(self.close)
        work = asyncio.run_coroutine_threadsafe(self._lend(identity_path, options), self._loop)
        return await asyncio.wrap_future(work)

    def _run(self, work: Coroutine[Any, Any, Any]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    async def _lend(self, identity_path: str, options: dict[str, Any]) -> Multiaddr:
        key = load_identity(Path(identity_path)).public_key
        if key not in self._running:
            self._running[key] = await Daemon.create(identity_path=identity_path, **options)
        return self._running[key].daemon_listen_maddr

    async def _end(self, daemon: Daemon) -> None:
        await daemon.shutdown()
        await asyncio.sleep(0)  # its tasks were cancelled, and end now

    async def _kill(self, daemon: Daemon) -> None:
        daemon._child.kill()
        await daemon._child.wait()
        await asyncio.wait([daemon._client.control._read_task])
        daemon._client.control._read_task.exception()  # that it died is no news


DAEMONS = Daemons()


class Lent(Daemon):
    """A client of a daemon that stays when the client shuts down."""

    @classmethod
    async def create(cls, initial_peers: Sequence[str] = (), **options: Any) -> P2P:
        client = await cls.replicate(await DAEMONS.lend(options.pop("identity_path"), options))
        for address in initial_peers:
            peer = node_of(address)
            await client._client.connect(peer, [Multiaddr(address).decapsulate(Multiaddr(f"/p2p/{peer}"))])
        return client

    async def shutdown(self) -> None:
        if self._child is None:
            for name in tuple(self._client.control.handlers):
                await self.remove_binary_stream_handler(name)
        await super().shutdown()


class Lodger(Node):
    """A node that uses the daemon of its key if there is one already."""

    daemon = Lent
