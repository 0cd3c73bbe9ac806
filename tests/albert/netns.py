"""A network of namespaces whose wire is this process: packets are delayed, lost and, while it is parted, stopped.

Each namespace has a TUN device; a thread reads what comes out of each and writes it into that of the recipient. The
namespaces have no names: they are gone with the process, however it ends.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import heapq
import os
import random
import select
import socket
import struct
import threading
import time
from collections.abc import Collection

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
    """Have this thread, and whatever it starts from now on, in the namespace that the path leads to."""
    descriptor = os.open(namespace, os.O_RDONLY)
    try:
        _check(ctypes.CDLL(None, use_errno=True).setns(descriptor, CLONE_NEWNET))
    finally:
        os.close(descriptor)


class Wire:
    """`count` namespaces, each of which reaches the others after `delay` seconds; a packet is lost with chance `loss`.

    `paths` leads to them, for `enter`, as long as this is open; `hosts` are their IPs.
    """

    def __init__(self, count: int, *, delay: float = 0.0, loss: float = 0.0, seed: int = 0) -> None:
        self.delay, self.loss = delay, loss
        self.hosts = [f"10.77.0.{number + 1}" for number in range(count)]
        self.parted: frozenset[int] = frozenset()
        """These reach each other, and the others each other, and nothing passes between the two."""
        self.carried = self.lost = self.stopped = 0
        """Packets."""
        self._random = random.Random(seed)
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
                    for request, value in ((SIOCSIFADDR, host), (SIOCSIFNETMASK, "255.255.255.0")):
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
        hosts = {socket.inet_aton(host): number for number, host in enumerate(self.hosts)}
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
                    if (to in self.parted) != (numbers[descriptor] in self.parted):
                        self.stopped += 1
                    elif self._random.random() < self.loss:
                        self.lost += 1
                    else:
                        self.carried += 1
                        due = time.monotonic() + self.delay
                        heapq.heappush(under_way, (due, self.carried, self._devices[to], packet))
            while under_way and under_way[0][0] <= time.monotonic():
                _, _, device, packet = heapq.heappop(under_way)
                try:
                    os.write(device, packet)
                except BlockingIOError:
                    self.lost += 1

    def _release(self) -> None:
        for descriptor in (*self._devices, *self._namespaces, self._stop, self._stopping):
            os.close(descriptor)


def _read(device: int) -> bytes | None:
    try:
        return os.read(device, 2 * MTU)
    except BlockingIOError:
        return None


def _check(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno() or errno.EPERM
        raise OSError(number, os.strerror(number))
