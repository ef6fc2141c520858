"""A PostgreSQL behind a bad network: a small TCP proxy that reads the protocol and cuts connections at chosen moments.

It understands as much of the protocol (https://www.postgresql.org/docs/current/protocol-message-formats.html) as it needs:
the first, untagged messages of a connection; then tagged ones, of which Query and Parse carry statements, and the
server's CommandComplete says that one is done.
"""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Final, Literal

SSL_REQUEST, GSS_REQUEST, CANCEL_REQUEST = 80877103, 80877104, 80877102
Moment = Literal["answer lost", "request lost"]
STATEMENT_TAGS: Final = (b"Q", b"P")


class Cutter:
    """Listens on 127.0.0.1:``port`` and forwards to the server's Unix socket.

    ``cuts(n)``: what to do to the n-th COMMIT since the start (from 1): None, or cut so that the request or the answer is lost.
    """

    def __init__(self, server_socket: str, cuts: Callable[[int], Moment | None]) -> None:
        self._server = server_socket
        self._cuts = cuts
        self._lock = threading.Lock()
        self.commits = 0
        self.done: dict[str, int] = {"answer lost": 0, "request lost": 0}
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def close(self) -> None:
        """No more connections; those there are go on until either side ends."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(10)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(client,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, client: socket.socket) -> None:
        with client, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server, suppress(OSError):
            server.connect(self._server)
            _Conversation(client, server, self._judge).run()

    def _judge(self) -> Moment | None:
        """Of a COMMIT that goes by."""
        with self._lock:
            self.commits += 1
            moment = self._cuts(self.commits)
            if moment is not None:
                self.done[moment] += 1
            return moment


class _Conversation:
    """One connection: two threads, each copying whole messages one way."""

    def __init__(self, client: socket.socket, server: socket.socket, judge: Callable[[], Moment | None]) -> None:
        self._client = client
        self._server = server
        self._judge = judge
        self._swallow = threading.Event()

    def run(self) -> None:
        self._start_up()
        answers = threading.Thread(target=self._guarded, args=(self._answers,), daemon=True)
        answers.start()
        self._guarded(self._requests)
        answers.join()

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except (OSError, EOFError):
            pass
        finally:
            self._cut()

    def _cut(self) -> None:
        for end in (self._client, self._server):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _start_up(self) -> None:
        """The untagged beginning; encryption is declined, so that what follows can be read."""
        while True:
            head = _exactly(self._client, 8)
            length, code = struct.unpack("!II", head)
            body = _exactly(self._client, length - 8)
            if code in (SSL_REQUEST, GSS_REQUEST):
                self._client.sendall(b"N")
                continue
            self._server.sendall(head + body)
            return

    def _requests(self) -> None:
        while True:
            tag, message = _message(self._client)
            if tag in STATEMENT_TAGS and _is_commit(tag, message):
                moment = self._judge()
                if moment == "request lost":
                    return
                if moment == "answer lost":
                    self._swallow.set()
            self._server.sendall(message)

    def _answers(self) -> None:
        while True:
            tag, message = _message(self._server)
            if self._swallow.is_set():
                if tag == b"C" and b"COMMIT" in message:
                    return  # it is done, and nobody will hear of it
                continue
            self._client.sendall(message)


def _is_commit(tag: bytes, message: bytes) -> bool:
    text = message[5:] if tag == b"Q" else message[5:].partition(b"\0")[2]
    return text.partition(b"\0")[0].strip().upper() == b"COMMIT"


def _message(end: socket.socket) -> tuple[bytes, bytes]:
    head = _exactly(end, 5)
    (length,) = struct.unpack("!I", head[1:])
    return head[:1], head + _exactly(end, length - 4)


def _exactly(end: socket.socket, count: int) -> bytes:
    parts = bytearray()
    while len(parts) < count:
        part = end.recv(count - len(parts))
        if not part:
            raise EOFError
        parts += part
    return bytes(parts)
