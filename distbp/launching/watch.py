"""Watching hosts while a run goes on: a host whose link is cut says nothing, and neither does mpirun, for ever.

One idle TCP connection to each host's ssh port, with the kernel's keep-alive: kernels answer for frozen processes, so
a paused host is waited for, and one whose kernel no longer answers is found in about 8 seconds.
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
import threading
from collections.abc import Callable, Iterable

from distbp.launching.hosts import CONNECT, Host

IDLE, PROBES = 1, 5  # seconds between two keep-alive probes, and how many may stay unanswered
AGAIN = 2.0  # seconds until a new connection is tried after the old one broke, and seconds that it may take


def address_of(ssh: str, host: Host) -> tuple[str, int] | None:
    """Return the address where ssh would find a host; None if it goes another way (a proxy), or does not say."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run([ssh, "-G", host.name], capture_output=True, text=True, timeout=CONNECT, check=True)
        keys = dict(line.partition(" ")[::2] for line in done.stdout.splitlines())
        if not {"proxyjump", "proxycommand"} & {key for key, value in keys.items() if value != "none"}:
            name, port = keys.get("hostname", host.name), int(keys.get("port", "22"))
            address = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)[0][4]
            return str(address[0]), port  # not the name: a name server may fail later on
    return None


class Watch:
    """Watches hosts from now on, in a thread each; a context manager. `lost` names those that were given up."""

    def __init__(self, ssh: str, hosts: Iterable[Host], tell: Callable[[], None]) -> None:
        self.lost: list[str] = []
        self._ssh, self._tell = ssh, tell
        self._over = threading.Event()
        self._hosts = [host for host in hosts if not host.is_here]

    def __enter__(self) -> Watch:
        for host in self._hosts:
            threading.Thread(target=self._watch, args=(host,), name=f"watch {host.name}", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()

    def _watch(self, host: Host) -> None:
        """Hold a connection to a host; when it breaks, and no new one comes about, the host is lost."""
        address = address_of(self._ssh, host)
        limit = float(CONNECT)
        while address and not self._over.is_set():
            try:
                with socket.create_connection(address, limit) as link:
                    link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, IDLE)
                    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, IDLE)
                    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, PROBES)
                    link.settimeout(1.0)
                    self._listen(link)
            except ConnectionRefusedError:
                pass  # its kernel answers; if its processes have gone, mpirun knows
            except OSError:
                if limit == AGAIN:
                    self.lost.append(host.name)
                    self._tell()
                    return
                limit = AGAIN
                self._over.wait(AGAIN)
                continue
            limit = float(CONNECT)
            self._over.wait(1.0)

    def _listen(self, link: socket.socket) -> None:
        """Return when the host closes the connection, as sshd does after a while; raise OSError when it breaks."""
        while not self._over.is_set():
            try:
                if not link.recv(4096):
                    return
            except TimeoutError as error:
                if error.errno:  # the kernel's: no probe was answered; without a number it is only our own second
                    raise
