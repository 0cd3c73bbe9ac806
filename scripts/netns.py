"""A network of namespaces whose wire is this process: packets are delayed, lost and, while it is parted, stopped.

Each namespace has a TUN device; a thread reads what comes out of each and writes it into that of the recipient. Some
may be behind a router that translates addresses (NAT). The namespaces have no names: they are gone with the process,
however it ends.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import heapq
import math
import os
import random
import select
import socket
import struct
import threading
import time
from collections.abc import Collection
from dataclasses import dataclass

CLONE_NEWNET = 0x40000000
IFF_TUN, IFF_NO_PI, IFF_UP = 0x1, 0x1000, 0x1
TUNSETIFF, SIOCSIFFLAGS, SIOCSIFADDR, SIOCSIFNETMASK, SIOCSIFMTU = 0x400454CA, 0x8914, 0x8916, 0x891C, 0x8922
MTU = 1400
DEVICE = b"wire"


def reason_not_to() -> str | None:
    """Why this machine cannot have such a network; None if it can."""
    if os.geteuid() != 0:
        return "namespaces need root"
    if not os.path.exists("/dev/net/tun"):
        return "there is no /dev/net/tun"
    try:
        Wire(1).close()
    except OSError as error:
        return f"namespaces with a TUN device are not permitted: {error}"
    return None


def enter(namespace: str) -> None:
    """Move this thread, and everything it starts from now on, to the namespace at this path."""
    descriptor = os.open(namespace, os.O_RDONLY)
    try:
        _check(ctypes.CDLL(None, use_errno=True).setns(descriptor, CLONE_NEWNET))
    finally:
        os.close(descriptor)


@dataclass(frozen=True)
class Line:
    """What the network between the peers is like: seconds one way, Mbit/s each way, chance that a packet is lost."""

    delay: float = 0.0
    rate: float = math.inf
    loss: float = 0.0

    @property
    def simulated(self) -> bool:
        return self != Line()


class Wire:
    """`count` namespaces, each of which reaches the others after `delay` seconds; a packet is lost with chance `loss`.

    Each one's line carries `rate` bytes per second out and as many in; without, it is as fast as this process.

    `paths` leads to them, for `enter`, as long as this is open; `hosts` are their IPs.

    Each of `natted` is alone behind a router: its IP is a private one, the others see `outside`, and only those can
    reach it to whom it has sent something from the same port. The router is symmetric: every one of them sees another
    port of it, so that nobody can tell others where it is to be found.
    """

    def __init__(
        self,
        count: int,
        *,
        delay: float = 0.0,
        loss: float = 0.0,
        rate: float = math.inf,
        seed: int = 0,
        natted: Collection[int] = (),
    ) -> None:
        self.delay, self.loss, self.rate, self.natted = delay, loss, rate, frozenset(natted)
        self.outside = [f"145.77.0.{number + 1}" for number in range(count)]
        """Not one of the reserved networks: libp2p would treat all peers as neighbours in one house."""
        self.hosts = [f"192.168.{n + 1}.2" if n in natted else self.outside[n] for n in range(count)]
        self._routers = {number: Router(self.hosts[number], self.outside[number]) for number in natted}
        self.parted: frozenset[int] = frozenset()
        """These reach each other, the others reach each other, and nothing passes between the two groups."""
        self.carried = self.lost = self.stopped = self.refused = 0
        """Packets; `refused` are those that a router did not admit."""
        self._random = random.Random(seed)
        self._out, self._in = [0.0] * count, [0.0] * count
        """The times at which each line is free again."""
        self._namespaces: list[int] = []
        self._devices: list[int] = []
        self._stop, self._stopping = os.pipe()
        try:
            for host in self.hosts:
                self._add(host)
        except OSError:
            self._release()
            raise
        self.paths = [f"/proc/{os.getpid()}/fd/{descriptor}" for descriptor in self._namespaces]
        self._thread = threading.Thread(target=self._carry, name="wire", daemon=True)
        self._thread.start()

    def part(self, numbers: Collection[int]) -> None:
        """Cut `numbers` off from the others; nobody: the network is whole again."""
        self.parted = frozenset(numbers)

    def close(self) -> None:
        os.write(self._stopping, b"x")
        self._thread.join()
        self._release()

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _add(self, host: str) -> None:
        """Make a namespace, in a thread of its own that leaves this one's for it."""
        problems: list[OSError] = []

        def make() -> None:
            try:
                _check(ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET))
                self._namespaces.append(os.open("/proc/thread-self/ns/net", os.O_RDONLY))
                self._devices.append(os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK))
                fcntl.ioctl(self._devices[-1], TUNSETIFF, struct.pack("16sH22x", DEVICE, IFF_TUN | IFF_NO_PI))
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
                    for request, value in ((SIOCSIFADDR, host), (SIOCSIFNETMASK, "128.0.0.0")):  # all are on the wire
                        address = struct.pack("HH4s8x", socket.AF_INET, 0, socket.inet_aton(value))
                        fcntl.ioctl(control, request, struct.pack("16s16s", DEVICE, address))
                    fcntl.ioctl(control, SIOCSIFMTU, struct.pack("16si12x", DEVICE, MTU))
                    for device in (DEVICE, b"lo"):
                        fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack("16sH14x", device, IFF_UP))
            except OSError as error:
                problems.append(error)

        thread = threading.Thread(target=make)
        thread.start()
        thread.join()
        if problems:
            raise problems[0]

    def _carry(self) -> None:
        numbers = {device: number for number, device in enumerate(self._devices)}
        hosts = {socket.inet_aton(host): number for number, host in enumerate(self.outside)}
        under_way: list[tuple[float, int, int, bytes]] = []
        poll = select.poll()
        for descriptor in (*self._devices, self._stop):
            poll.register(descriptor, select.POLLIN)
        while True:
            wait = None if not under_way else max(0.0, 1000 * (under_way[0][0] - time.monotonic()))
            for descriptor, _ in poll.poll(wait):
                if descriptor == self._stop:
                    return
                while (packet := _read(descriptor)) is not None:
                    to = hosts.get(packet[16:20]) if packet[0] >> 4 == 4 else None
                    if to is None:
                        continue
                    if (router := self._routers.get(numbers[descriptor])) is not None:
                        packet = router.out(packet)
                    if (router := self._routers.get(to)) is not None:
                        inside = router.inwards(packet)
                        if inside is None:
                            self.refused += 1
                            continue
                        packet = inside
                    if (to in self.parted) != (numbers[descriptor] in self.parted):
                        self.stopped += 1
                    elif self._random.random() < self.loss:
                        self.lost += 1
                    else:
                        self.carried += 1
                        due = self._through(numbers[descriptor], to, len(packet))
                        heapq.heappush(under_way, (due, self.carried, self._devices[to], packet))
            while under_way and under_way[0][0] <= time.monotonic():
                _, _, device, packet = heapq.heappop(under_way)
                try:
                    os.write(device, packet)
                except BlockingIOError:
                    self.lost += 1

    def _through(self, sender: int, to: int, size: int) -> float:
        """When a packet of this many bytes arrives if it leaves now."""
        self._out[sender] = max(time.monotonic(), self._out[sender]) + size / self.rate
        self._in[to] = max(self._out[sender] + self.delay, self._in[to] + size / self.rate)
        return self._in[to]

    def _release(self) -> None:
        for descriptor in (*self._devices, *self._namespaces, self._stop, self._stopping):
            os.close(descriptor)


class Router:
    """What a router at home does to the packets of the one host `inside` it: TCP and UDP, without options of IP."""

    def __init__(self, inside: str, outside: str) -> None:
        self.inside, self.outside = socket.inet_aton(inside), socket.inet_aton(outside)
        self._next = 20_000
        self._ports: dict[tuple[bytes, ...], bytes] = {}
        """Protocol, port of the host, and its remote -> port outside."""
        self._talks: dict[tuple[bytes, ...], bytes] = {}
        """Protocol, port outside, IP and port of the remote -> port of the host."""

    def out(self, packet: bytes) -> bytes:
        protocol, port, other = packet[9:10], packet[20:22], (packet[16:20], packet[22:24])
        key = (protocol, port, *other)
        if key not in self._ports:
            self._next += 1
            self._ports[key] = struct.pack("!H", self._next)
        talk = (protocol, self._ports[key], *other)
        self._talks[talk] = port
        return _readdressed(packet, 12, self.outside, 20, self._ports[key])

    def inwards(self, packet: bytes) -> bytes | None:
        """The packet as the host receives it; None if it does not."""
        port = self._talks.get((packet[9:10], packet[22:24], packet[12:16], packet[20:22]))
        return None if port is None else _readdressed(packet, 16, self.inside, 22, port)


def _readdressed(packet: bytes, ip_at: int, ip: bytes, port_at: int, port: bytes) -> bytes:
    """The packet with another IP and port, and the checksums that follow from them."""
    tcp, udp = packet[9] == socket.IPPROTO_TCP, packet[9] == socket.IPPROTO_UDP
    if not (tcp or udp):
        return packet
    changed = bytearray(packet)
    changed[ip_at : ip_at + 4], changed[port_at : port_at + 2] = ip, port
    differences = [(packet[at : at + 2], changed[at : at + 2]) for at in (ip_at, ip_at + 2, port_at)]
    for at, pairs in ((10, differences[:2]), (36 if tcp else 26, differences)):
        total = 0xFFFF ^ struct.unpack_from("!H", packet, at)[0]
        for before, after in pairs:
            total += (0xFFFF ^ int.from_bytes(before, "big")) + int.from_bytes(after, "big")
        while total >> 16:
            total = (total & 0xFFFF) + (total >> 16)
        struct.pack_into("!H", changed, at, 0xFFFF ^ total)
    return bytes(changed)


def _read(device: int) -> bytes | None:
    try:
        return os.read(device, 2 * MTU)
    except BlockingIOError:
        return None


def _check(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno() or errno.EPERM
        raise OSError(number, os.strerror(number))
