"""A daemon that is far away: its socket behind TCP and TLS, where no file of this machine can be seen."""

from __future__ import annotations

import contextlib
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from openmodal.engines.docker.daemon import Daemon


@contextmanager
def far_away(daemon: Daemon, folder: Path) -> Iterator[Daemon]:
    """The daemon over TLS, with certificates on both sides, for the block."""
    make_certificates(folder)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    context.load_verify_locations(folder / "ca.pem")
    context.verify_mode = ssl.CERT_REQUIRED
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        threading.Thread(target=_serve, args=(listener, context, daemon.path), daemon=True).start()
        yield Daemon(f"tcp://127.0.0.1:{listener.getsockname()[1]}", str(folder))
        listener.shutdown(socket.SHUT_RDWR)


def make_certificates(folder: Path) -> None:
    """One that signs itself is authority, server and client at once."""
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=docker".split()
    files = ["-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem")]
    subprocess.run([*command, "-addext", "subjectAltName=IP:127.0.0.1", *files], check=True, capture_output=True)
    (folder / "ca.pem").write_bytes((folder / "cert.pem").read_bytes())


def _serve(listener: socket.socket, context: ssl.SSLContext, path: str) -> None:
    with contextlib.suppress(OSError):  # closed at the end
        while True:
            client, _ = listener.accept()
            threading.Thread(target=_connect, args=(client, context, path), daemon=True).start()


def _connect(client: socket.socket, context: ssl.SSLContext, path: str) -> None:
    with (
        contextlib.suppress(OSError),
        context.wrap_socket(client, server_side=True) as outside,
        socket.socket(socket.AF_UNIX) as inside,
    ):
        inside.connect(path)
        threading.Thread(target=_copy, args=(inside, outside), daemon=True).start()
        _copy(outside, inside)


def _copy(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_RDWR)
