"""Messages over a socket: JSON, preceded by its length in four bytes. Nothing is unpickled."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Mapping
from typing import Any

__all__ = ["MAX_BYTES", "Channel"]

MAX_BYTES = 2**20
"""Largest size of a message in bytes."""
_HEAD = 4


class Channel:
    """One end of a connection for messages. Several threads may use it at the same time."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self._sending = threading.Lock()
        self._buffer = bytearray()

    def fileno(self) -> int:
        """Descriptor of the socket, for `selectors`."""
        return self.connection.fileno()

    def send(self, message: Mapping[str, Any]) -> None:
        """Send a message.

        Raises:
            OSError: the connection is closed or broken.
        """
        data = json.dumps(message).encode()
        if len(data) > MAX_BYTES:
            raise ValueError(f"a message has at most {MAX_BYTES:,} bytes, this one {len(data):,}")
        with self._sending:
            self.connection.sendall(len(data).to_bytes(_HEAD, "big") + data)

    def arrived(self) -> list[dict[str, Any]] | None:
        """The messages that have arrived. Call it when the socket can be read. None: the other side closed the
        connection.

        Raises:
            OSError: the connection broke.
            ValueError: the received data are not a message.
        """
        data = self.connection.recv(65536)
        if not data:
            return None
        self._buffer += data
        messages: list[dict[str, Any]] = []
        while len(self._buffer) >= _HEAD:
            end = _HEAD + int.from_bytes(self._buffer[:_HEAD], "big")
            if end > _HEAD + MAX_BYTES:
                raise ValueError("a message is too long")
            if len(self._buffer) < end:
                break
            try:
                message = json.loads(self._buffer[_HEAD:end])
            except RecursionError:
                raise ValueError("a message is nested too deeply") from None
            if not isinstance(message, dict):
                raise ValueError("a message is an object")
            messages.append(message)
            del self._buffer[:end]
        return messages

    def close(self) -> None:
        """Close the connection."""
        self.connection.close()
