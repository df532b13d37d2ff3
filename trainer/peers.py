"""Processes of a run that watch each other: when one dies, the others end within seconds and name it.

Every process holds a connection to process 0. The operating system closes it when a process ends, in whatever way: so a
process that only takes long, over its first compilation say, is never taken for a dead one. TCP's own keep-alive finds
a machine that is gone.
"""

import os
import secrets
import selectors
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import torch

NOTICE_S = 3.0  # a process may take so long to end by itself, once another has died
CONNECT_S = 60.0
GOODBYE = b"\xff\xff\xff\xff"  # instead of the rank of a process that died
KEEP_ALIVE = {"TCP_KEEPIDLE": 2, "TCP_KEEPINTVL": 1, "TCP_KEEPCNT": 3}  # seconds, seconds, tries


class PeerLost(ConnectionError):
    """Another process of the run has ended before its work was done."""


class Peers:
    """Context manager around a run of several processes. It does nothing in a run of one.

    On leaving, the process group is closed. If another process dies, this one ends with exit code 1: by an exception,
    or by `os._exit` if it hangs in a collective.

    Attributes:
        on_loss: called with the sentence before this process is ended by force.
    """

    def __init__(self, accelerator):
        self.rank, self.n, self.accelerator = accelerator.process_index, accelerator.num_processes, accelerator
        self.on_loss: Callable[[str], None] = lambda sentence: None
        self.lost: int | None = None
        self.noticed, self.unwinding = threading.Event(), threading.Event()
        self.connections: dict[socket.socket, int] = {}  # -> rank

    def __enter__(self) -> "Peers":
        if self.n > 1:
            self._connect()
            # A worker that outlives its process must not hide the death of that.
            os.register_at_fork(after_in_child=self._close)
            threading.Thread(target=self._watch, daemon=True, name="peers").start()
        return self

    def __exit__(self, kind, problem, traceback) -> None:
        if self.n > 1 and problem is None:
            try:
                self.accelerator.wait_for_everyone()  # what the main process writes last must not be cut off
            except RuntimeError as failure:
                problem = failure
        if problem is not None and self._explains(problem):
            self._end()
        self.unwinding.set()
        if problem is None:
            self._send(GOODBYE)
        self._close()
        with suppress(RuntimeError):
            self.accelerator.end_training()  # closes the process group

    @property
    def sentence(self) -> str:
        return (
            f"process {self.lost} of {self.n} has died or failed, so this one, {self.rank}, ends too: "
            "the same command goes on from the newest checkpoint"
        )

    @contextmanager
    def named(self) -> Iterator[None]:
        """Within it, a failure that comes of the death of another process is raised as one that names it.

        Raises:
            PeerLost: in the place of the error.
        """
        try:
            yield
        except BaseException as problem:
            lost = self._explains(problem)
            self.unwinding.set()
            if lost:
                raise PeerLost(self.sentence) from problem
            raise

    def _explains(self, problem: BaseException) -> bool:
        """Whether an error comes of a lost process; the network may tell of it before the watching thread does."""
        if isinstance(problem, PeerLost):
            return True
        return self.n > 1 and isinstance(problem, RuntimeError) and self.noticed.wait(NOTICE_S)

    def _connect(self) -> None:
        """Process 0 waits for the others to call. A secret that it gave them keeps strangers out."""
        host = os.environ.get("MASTER_ADDR", "127.0.0.1")
        is_local = int(os.environ.get("LOCAL_WORLD_SIZE", 0)) == self.n or host in ("127.0.0.1", "localhost")
        if self.rank == 0:
            server = socket.create_server(("127.0.0.1" if is_local else "", 0), backlog=self.n)
            server.settimeout(CONNECT_S)
        call = [server.getsockname()[1], secrets.token_bytes(16)] if self.rank == 0 else [None, None]
        torch.distributed.broadcast_object_list(call, src=0)
        port, secret = call
        try:
            if self.rank:
                connection = socket.create_connection(("127.0.0.1" if is_local else host, port), CONNECT_S)
                connection.sendall(secret + self.rank.to_bytes(4, "big"))
                self._keep(connection, 0)
            else:
                self._accept(server, secret)
        except OSError as problem:
            raise ConnectionError(
                f"process {self.rank} of {self.n} has no connection to the others ({problem}): "
                f"every machine must be able to reach {host} on any port"
            ) from None

    def _accept(self, server: socket.socket, secret: bytes) -> None:
        with server:
            while len(self.connections) < self.n - 1:
                connection, _ = server.accept()
                connection.settimeout(CONNECT_S)
                told = received(connection, len(secret) + 4)
                if secrets.compare_digest(told[: len(secret)], secret):
                    self._keep(connection, int.from_bytes(told[len(secret) :], "big"))
                else:
                    connection.close()

    def _keep(self, connection: socket.socket, rank: int) -> None:
        connection.settimeout(None)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in KEEP_ALIVE.items():
            if hasattr(socket, name):  # not on every system
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        self.connections[connection] = rank

    def _send(self, message: bytes) -> None:
        for connection in self.connections:
            with suppress(OSError):
                connection.sendall(message)

    def _close(self) -> None:
        for connection in self.connections:
            connection.close()

    def _watch(self) -> None:
        """Wait for the first connection that ends without a goodbye; process 0 passes on whose it was."""
        with selectors.DefaultSelector() as selector:
            for connection in self.connections:
                selector.register(connection, selectors.EVENT_READ)
            while selector.get_map():
                for key, _ in selector.select():
                    message = received(key.fileobj, 4)
                    if message == GOODBYE:
                        selector.unregister(key.fileobj)
                        continue
                    self.lost = int.from_bytes(message, "big") if message else self.connections[key.fileobj]
                    return self._lose()

    def _lose(self) -> None:
        if self.rank == 0:
            self._send(self.lost.to_bytes(4, "big"))
        self.noticed.set()
        if not self.unwinding.wait(NOTICE_S):  # the program hangs in a collective of the device, which never ends
            self.on_loss(self.sentence)
            self._end()

    def _end(self) -> None:
        """End at once: the process group would wait for the lost process."""
        print(f"\nerror: {self.sentence}", file=sys.stderr, flush=True)
        os._exit(1)


def received(connection: socket.socket, n_bytes: int) -> bytes:
    """So many bytes; none if the connection ended before."""
    message = b""
    while len(message) < n_bytes:
        try:
            part = connection.recv(n_bytes - len(message))
        except OSError:
            part = b""
        if not part:
            return b""
        message += part
    return message
