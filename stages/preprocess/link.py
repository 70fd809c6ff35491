"""Messages between two machines over a TCP connection: JSON, and the bytes of an image. Nothing is unpickled."""

import json
import socket
import struct
import threading
from collections.abc import Mapping
from typing import Any

LENGTHS = struct.Struct("!IQ")  # bytes of the JSON text and of the image
MOST_TEXT, MOST_BYTES = 2**24, 2**30
HEARTBEAT_SECONDS = 1.0


class LostError(Exception):
    """The other machine has ended, hangs, cannot be reached, or sends something else."""


class Link:
    """One end of a connection. Several threads may send."""

    def __init__(self, connection: socket.socket, address: str, timeout_seconds: float) -> None:
        """address: of the other end. timeout_seconds: how long that may be silent. Raises OSError."""
        self.address = address
        self._connection, self._lock = connection, threading.Lock()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # of Linux: else a sender notices a cut cable after 15 minutes
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(1000 * timeout_seconds))
        self.set_timeout(timeout_seconds)

    def set_timeout(self, seconds: float) -> None:
        """Change how long the other end may be silent."""
        self._connection.settimeout(seconds)

    def fileno(self) -> int:
        """The descriptor, for select."""
        return self._connection.fileno()

    def send(self, message: Mapping[str, Any], image: memoryview | bytes = b"") -> None:
        """Send a message and an image, which may be empty. Raises LostError."""
        text = json.dumps(message).encode()
        try:
            with self._lock:
                self._connection.sendall(LENGTHS.pack(len(text), len(image)) + text)
                self._connection.sendall(image)
        except OSError as error:
            raise LostError(error.strerror or "does not answer") from None

    def heartbeat(self) -> None:
        """Tell the other end that this one is alive. Raises LostError."""
        self.send({})

    def receive(self) -> tuple[dict[str, Any], bytearray]:
        """The next message that is no heartbeat, and its image. Raises LostError."""
        while True:
            text, image = LENGTHS.unpack(self._read(LENGTHS.size))
            if text > MOST_TEXT or image > MOST_BYTES:
                raise LostError("sends something else")
            try:
                message = json.loads(self._read(text))
            except ValueError:
                raise LostError("sends something else") from None
            if message:
                return message, self._read(image)

    def close(self) -> None:
        """Close the connection; a thread that waits for it raises LostError."""
        try:
            self._connection.shutdown(socket.SHUT_RDWR)
        except OSError:
            return  # closed before
        finally:
            self._connection.close()

    def _read(self, count: int) -> bytearray:
        content = bytearray(count)
        rest = memoryview(content)
        try:
            while rest:
                received = self._connection.recv_into(rest)
                if not received:
                    raise LostError("has ended")
                rest = rest[received:]
        except TimeoutError:
            raise LostError("does not answer") from None
        except OSError as error:
            raise LostError(error.strerror or "cannot be reached") from None
        return content
