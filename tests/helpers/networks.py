"""A private network on this machine: a bridge of its own, and network namespaces that stand for other machines.

Needs root and ``ip``; everything has a name of its own and is removed by that name. Knows nothing of what runs there.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

NUMBERS = 200  # of networks, by process id: 10.213.0.0/24 and so on


@dataclass(frozen=True)
class Machine:
    """A network namespace with one address.

    Attributes:
        enter: What to put in front of a command to run it there.
    """

    name: str
    address: str

    @property
    def enter(self) -> list[str]:
        return ["ip", "netns", "exec", self.name]


@dataclass(frozen=True)
class Network:
    """
    Attributes:
        address: Of this machine on the bridge.
    """

    address: str
    machines: list[Machine]


def why_no_networks() -> str | None:
    """Why no namespaces can be made here, or None when they can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "there is no ip (iproute2)"
    try:
        with private_network(1):
            return None
    except subprocess.CalledProcessError as exc:
        return f"no network namespaces here: {exc.stderr.strip()}"


@contextlib.contextmanager
def private_network(count: int) -> Iterator[Network]:
    """This machine and ``count`` others, each reachable by each.

    Raises:
        subprocess.CalledProcessError: it is not permitted here.
    """
    number = os.getpid() % NUMBERS
    bridge = f"xq{os.getpid()}"
    subnet = f"10.213.{number}"
    with contextlib.ExitStack() as stack:
        _ip("link", "add", bridge, "type", "bridge")
        stack.callback(_ip, "link", "del", bridge)
        _ip("address", "add", f"{subnet}.1/24", "dev", bridge)
        _ip("link", "set", bridge, "up")
        machines = []
        for index in range(count):
            machine = Machine(f"{bridge}n{index}", f"{subnet}.{index + 10}")
            _ip("netns", "add", machine.name)
            stack.callback(_ip, "netns", "del", machine.name)
            outer = f"{bridge}v{index}"
            _ip("link", "add", outer, "type", "veth", "peer", "name", "eth0", "netns", machine.name)
            _ip("link", "set", outer, "master", bridge, "up")  # goes with its peer
            _ip("-n", machine.name, "link", "set", "lo", "up")
            _ip("-n", machine.name, "address", "add", f"{machine.address}/24", "dev", "eth0")
            _ip("-n", machine.name, "link", "set", "eth0", "up")
            machines.append(machine)
        yield Network(f"{subnet}.1", machines)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True)
