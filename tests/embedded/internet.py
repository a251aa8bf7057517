"""A small internet in a network namespace beside this machine: name servers, HTTP, HTTPS and others
on addresses of the tests.

    with internet(folder) as net: net.hits() tells which addresses and names were asked for since the last time

A machine can have one, and the second to come waits. Tests that need no more of this machine than a
network use apart.py instead, where each has one of its own.

Run as a program it is the servers' side: it waits for a line, serves, and answers each further line
with the hits, as JSON.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import socket
import socketserver
import ssl
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

PUBLIC, OTHER = "192.0.2.10", "192.0.2.20"  # a documentation range: nobody's, and not on the deny list
# Azure's: other tests give the other clouds' to this machine.
PRIVATE, METADATA, SANDBOXES = "10.99.97.1", "168.63.129.16", "10.251.255.250"
ADDRESSES = (PUBLIC, OTHER, PRIVATE, METADATA, SANDBOXES)
ECHO, BULK = 7000, 7001
BULK_BYTES = 100 << 20
_OURS = "192.0.2.254"

ZONE = {
    "public.example": [PUBLIC],
    "other.example": [OTHER],
    "a.wild.example": [PUBLIC],
    "private.example": [PRIVATE],
    "metadata.example": [METADATA],
    "sandboxes.example": [SANDBOXES],
    "loopback.example": ["127.0.0.1"],
    "mixed.example": [PRIVATE, PUBLIC],
    "tcp.example": [PUBLIC],  # its answer is too large for UDP
    "rebind.example": [PUBLIC],  # the second time PRIVATE
}


@dataclass(frozen=True)
class Internet:
    """The tests' side of it."""

    process: subprocess.Popen[str]

    def hits(self) -> list[str]:
        """Who was called ("192.0.2.10:80", "udp 192.0.2.10:443"), and what was asked for ("name public.example"), since the last time."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        found: list[str] = json.loads(self.process.stdout.readline())
        return found


@contextmanager
def internet(folder: Path) -> Iterator[Internet]:
    """Make the only one of this machine, with routes from here; end it."""
    with open("/run/openmodal-internet.lock", "w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the addresses are there once: another run of the tests waits
        with serving(folder) as found:
            yield found


@contextmanager
def serving(folder: Path) -> Iterator[Internet]:
    """Make one in the network namespace of this thread, which has no other; end it."""
    certificate = folder / "server.pem"
    subject = ("-subj", "/CN=public.example", "-keyout", str(certificate), "-out", str(certificate))
    run("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", *subject)
    command = ["unshare", "--net", sys.executable, __file__, str(certificate)]
    with ExitStack() as stack:
        process = stack.enter_context(
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        )
        stack.callback(process.kill)
        assert process.stdout
        assert process.stdout.readline() == "waiting\n"
        stack.callback(lambda: subprocess.run(["ip", "link", "del", "omnet0"], capture_output=True, check=False))
        _connect(process.pid)
        found = Internet(process)
        assert found.hits() == []
        for address in ADDRESSES:  # the control
            with socket.create_connection((address, ECHO), 5) as client:
                client.sendall(b"x")
                assert client.recv(1) == b"x"
        assert found.hits() == [f"{address}:{ECHO}" for address in ADDRESSES]
        yield found


def _connect(pid: int) -> None:
    inside = ("nsenter", f"--net=/proc/{pid}/ns/net", "ip")
    run("ip", "link", "add", "omnet0", "type", "veth", "peer", "name", "omnet1", "netns", str(pid))
    run("ip", "addr", "add", f"{_OURS}/32", "dev", "omnet0")
    run("ip", "link", "set", "omnet0", "up")
    # As a machine that forwards for everybody: what is refused is refused by the sandboxes' own
    # rules.
    Path("/proc/sys/net/ipv4/conf/omnet0/forwarding").write_text("1")
    run(*inside, "link", "set", "lo", "up")
    run(*inside, "link", "set", "omnet1", "up")
    for address in ADDRESSES:
        run("ip", "route", "add", f"{address}/32", "dev", "omnet0")
        run(*inside, "addr", "add", f"{address}/32", "dev", "omnet1")
    run(*inside, "route", "add", f"{_OURS}/32", "dev", "omnet1", "src", PUBLIC)
    run(*inside, "route", "add", "default", "via", _OURS, "dev", "omnet1", "src", PUBLIC)


def run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, stdin=subprocess.DEVNULL)


# -------------------------------------------------------------------------------------- the servers

HITS: list[str] = []


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 500


class Handler(socketserver.BaseRequestHandler):
    """Notes which of the addresses was called."""

    request: socket.socket

    def setup(self) -> None:
        address, port = self.request.getsockname()
        HITS.append(f"{address}:{port}")
        self.request.settimeout(120)  # longer than a test waits for the last of a crowd

    def handle(self) -> None:
        with contextlib.suppress(OSError):
            self.serve()

    def serve(self) -> None:
        while data := self.request.recv(65536):
            self.request.sendall(data)


class Http(Handler):
    def serve(self) -> None:
        data = b""
        while b"\r\n\r\n" not in data:
            if not (part := self.request.recv(65536)):
                return
            data += part
        self.request.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nserved " + data.split(b"\r\n")[0])


class Https(Handler):
    context: ssl.SSLContext

    def serve(self) -> None:
        with self.context.wrap_socket(self.request, server_side=True) as secure:
            secure.sendall(b"secret " + secure.recv(100))


class Bulk(Handler):
    """Reads a line, and sends that many bytes; or "in", reads to the end, and tells how many."""

    def serve(self) -> None:
        line = b""
        while not line.endswith(b"\n"):
            line += self.request.recv(1)
        if line == b"in\n":
            total = 0
            while data := self.request.recv(1 << 18):
                total += len(data)
            self.request.sendall(b"%d\n" % total)
            return
        block = bytes(1 << 18)
        for _ in range(int(line) // len(block)):
            self.request.sendall(block)


class DnsOverTcp(Handler):
    def serve(self) -> None:
        size = struct.unpack("!H", self.request.recv(2))[0]
        answer = answer_to(self.request.recv(size), truncate=False)
        self.request.sendall(struct.pack("!H", len(answer)) + answer)


def answer_to(query: bytes, *, truncate: bool = True) -> bytes:
    """The name server: addresses of ZONE, no such name for all others."""
    labels, at = [], 12
    while query[at]:
        labels.append(query[at + 1 : at + 1 + query[at]].decode())
        at += 1 + query[at]
    name, question = ".".join(labels).lower(), query[12 : at + 5]
    again = f"name {name}" in HITS
    HITS.append(f"name {name}")
    addresses = [PRIVATE] if name == "rebind.example" and again else ZONE.get(name)
    if name == "tcp.example" and truncate:
        return query[:2] + struct.pack("!5H", 0x8380, 1, 0, 0, 0) + question
    records = [b"\xc0\x0c\0\1\0\1\0\0\0\0\0\4" + socket.inet_aton(address) for address in addresses or ()]
    flags = 0x8180 if addresses else 0x8183
    return query[:2] + struct.pack("!5H", flags, 1, len(records), 0, 0) + question + b"".join(records)


def serve_datagrams(address: str, port: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((address, port))
        while True:
            data, sender = sock.recvfrom(4096)
            if port == 53:
                with contextlib.suppress(OSError):  # there may be no way back to who asks
                    sock.sendto(answer_to(data), sender)
            else:
                HITS.append(f"udp {address}:{port}")


def main(certificate: str) -> None:
    print("waiting", flush=True)
    input()
    Https.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    Https.context.load_cert_chain(certificate)
    handlers = {53: DnsOverTcp, 80: Http, 443: Https, 25: Handler, ECHO: Handler, BULK: Bulk}
    for port, handler in handlers.items():
        threading.Thread(target=Server(("0.0.0.0", port), handler).serve_forever, daemon=True).start()
    for address in ADDRESSES:
        for port in (53, 443):
            threading.Thread(target=serve_datagrams, args=(address, port), daemon=True).start()
    while True:
        found, HITS[:] = list(HITS), []
        print(json.dumps(found), flush=True)
        if not sys.stdin.readline():
            return


if __name__ == "__main__":
    main(sys.argv[1])
