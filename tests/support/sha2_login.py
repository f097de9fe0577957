"""A server that asks for MySQL 8's own login, `caching_sha2_password`, without TLS, and knows no more than that."""

import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_SALT = b"12345678901234567890"
_CAPABILITIES = 0x8 | 0x200 | 0x8000 | 0x80000
"""A database at the login, protocol 4.1, a salt of 20 bytes, a named way to log in."""
_HELLO = (
    b"\x0a8.4.0\0"
    + struct.pack("<I", 1)
    + _SALT[:8]
    + b"\0"
    + struct.pack("<HBHHB", _CAPABILITIES & 0xFFFF, 45, 2, _CAPABILITIES >> 16, 21)
    + bytes(10)
    + _SALT[8:]
    + b"\0caching_sha2_password\0"
)
_FULL_LOGIN = b"\x01\x04"
_KEY = b"\x01-----BEGIN PUBLIC KEY-----\n-----END PUBLIC KEY-----\n"


@contextmanager
def sha2_login() -> Iterator[int]:
    """Its port on 127.0.0.1."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=_serve, args=(server,))
        thread.start()
        try:
            yield server.getsockname()[1]
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()


def _serve(server: socket.socket) -> None:
    with suppress(OSError):
        while True:
            client, _ = server.accept()
            with client:
                for number, said in ((0, _HELLO), (2, _FULL_LOGIN), (4, _KEY)):
                    client.sendall(struct.pack("<I", len(said) | number << 24) + said)
                    client.recv(65_536)
