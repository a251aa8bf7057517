"""A client of container registries (the OCI distribution protocol): tokens, manifests, blobs.

Nothing that a registry says is believed. Sizes are limits, and digests are checked while reading.
An address that it redirects to (or of its token server) may be no more private than the registry
itself, so that a registry cannot reach into this machine's network.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import ipaddress
import re
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar
from urllib.parse import urljoin, urlsplit

import httpx2
import msgspec

from openmodal.build import credentials
from openmodal.build.reference import INDEXES, MANIFESTS, Descriptor, Reference
from openmodal.errors import RegistryError

MANIFEST_BYTES = 4 << 20
_ACCEPT = ", ".join((*INDEXES, *MANIFESTS))
_REDIRECTS = 5
_ATTEMPTS = 5
_TIMEOUT = httpx2.Timeout(30.0, connect=10.0)
# Bytes per second that a download must reach on average, after a minute's grace.
_SLOWEST = 10 << 10
_GRACE = 60.0
_PARAMETER = re.compile(r'([a-zA-Z_]+)="([^"]*)"')

_T = TypeVar("_T")
Headers = Callable[[], dict[str, str]]

Resolve = Callable[[str], list[str]]


class Denied(RegistryError):
    """The registry is there, but does not let us see that."""


class _Again(Exception):
    """This attempt failed, the next may not."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait


@functools.cache
def _authorities() -> ssl.SSLContext:
    """Whom TLS trusts: all clients share it, for reading the certificates takes some 20 ms."""
    return httpx2.create_ssl_context()


def resolve(host: str) -> list[str]:
    """The addresses of a host; none if this machine cannot tell (behind a proxy it need not)."""
    try:
        return [str(item[4][0]) for item in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)]
    except (OSError, UnicodeError):
        return []


class Client:
    """One registry. Safe to use from several threads.

    Args:
        host: "name" or "name:port". Loopback and what `insecure` names is spoken to without TLS.
        login: credentials, None for none.
    """

    def __init__(
        self,
        host: str,
        *,
        login: credentials.Login | None = None,
        insecure: tuple[str, ...] = (),
        resolver: Resolve = resolve,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self._name = urlsplit(f"//{host}").hostname or host
        self._plain = host in insecure or _level([self._name]) == _LOOPBACK or self._name == "localhost"
        self._base = f"{'http' if self._plain else 'https'}://{host}"
        self._login = login
        self._resolve = resolver
        self._pause = pause
        self._level = _level([self._name], resolver)
        self._tokens: dict[str, str] = {}
        headers = {"User-Agent": "openmodal"}
        self._http = httpx2.Client(timeout=_TIMEOUT, follow_redirects=False, headers=headers, verify=_authorities())

    def close(self) -> None:
        """Close all connections."""
        self._http.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()

    # -------------------------------------------------------------------------------- what there is

    def manifest(self, reference: Reference, target: str = "") -> tuple[str, str, bytes]:
        """A manifest or index: its media type, digest and bytes."""
        target = target or reference.target
        url = f"{self._base}/v2/{reference.repository}/manifests/{target}"

        def read(response: httpx2.Response) -> tuple[str, str, bytes]:
            body = _limited(response, MANIFEST_BYTES, f"the manifest of {reference}")
            digest = f"sha256:{hashlib.sha256(body).hexdigest()}"
            if target.startswith("sha256:") and digest != target:
                raise RegistryError(f"{self._name} sent a manifest of {reference} whose digest is wrong")
            return response.headers.get("Content-Type", "").partition(";")[0].strip(), digest, body

        return self._attempt(url, lambda: {"Accept": _ACCEPT}, str(reference), read)

    def small(self, reference: Reference, blob: Descriptor) -> bytes:
        """A blob that is read into memory: an image's configuration."""

        def read(response: httpx2.Response) -> bytes:
            body = _limited(response, MANIFEST_BYTES, f"a configuration of {reference}")
            if f"sha256:{hashlib.sha256(body).hexdigest()}" != blob.digest:
                raise RegistryError(f"{self._name} sent a configuration of {reference} whose digest is wrong")
            return body

        return self._attempt(self._blob(reference, blob), dict, str(reference), read)

    def download(self, reference: Reference, blob: Descriptor, file: Path, tell: Callable[[int], None]) -> None:
        """Fetch a blob into a file, or the rest of it if interrupted; `tell` takes each piece's
        length.

        Raises:
            RegistryError: the blob cannot be had, or its digest or size is wrong.
        """
        hasher = hashlib.sha256()
        deadline = time.monotonic() + _GRACE + blob.size / _SLOWEST
        with file.open("wb") as output:

            def read(response: httpx2.Response) -> None:
                nonlocal hasher
                if output.tell() and response.status_code != 206:  # it starts from the beginning
                    output.seek(0)
                    output.truncate()
                    hasher = hashlib.sha256()
                # Piece by piece: what httpx gathers for a larger one is lost if the line breaks.
                for data in response.iter_raw():
                    _check_progress(output.tell() + len(data), blob, deadline)
                    output.write(data)
                    hasher.update(data)
                    tell(len(data))
                if output.tell() < blob.size:
                    raise _Again("the connection ended early")

            def headers() -> dict[str, str]:
                return {"Range": f"bytes={output.tell()}-"} if output.tell() else {}

            self._attempt(self._blob(reference, blob), headers, str(reference), read)
        if f"sha256:{hasher.hexdigest()}" != blob.digest:
            raise RegistryError(f"{self._name} sent a layer of {reference} whose digest is wrong ({blob.digest})")

    def _blob(self, reference: Reference, blob: Descriptor) -> str:
        return f"{self._base}/v2/{reference.repository}/blobs/{blob.digest}"

    # ------------------------------------------------------------------------------------- requests

    def _attempt(self, url: str, headers: Headers, what: str, read: Callable[[httpx2.Response], _T]) -> _T:
        """Ask until it works; give up on what will not change."""
        for attempt in range(_ATTEMPTS):
            try:
                with self._open(url, headers(), what) as response:
                    return read(response)
            except (httpx2.TransportError, _Again) as error:
                if attempt == _ATTEMPTS - 1:
                    reason = re.sub(r"^\[Errno -?\d+\] ", "", str(error)) or type(error).__name__
                    raise RegistryError(
                        f"{what} cannot be fetched: {reason}; `openmodal doctor --network` tells what this machine reaches"
                    ) from None
                self._pause(max(getattr(error, "wait", 0.0), 0.2 * 2**attempt))
        raise AssertionError

    @contextmanager
    def _open(self, url: str, headers: dict[str, str], what: str) -> Iterator[httpx2.Response]:
        with self._follow(url, self._with_token(url, headers)) as response:
            if response.status_code != 401:
                yield _good(response, what, self._name)
                return
            challenge = response.headers.get("WWW-Authenticate", "")
        self._tokens[_scope_of(url)] = self._authorize(challenge, what)
        with self._follow(url, self._with_token(url, headers)) as response:
            yield _good(response, what, self._name)

    def _with_token(self, url: str, headers: dict[str, str]) -> dict[str, str]:
        token = self._tokens.get(_scope_of(url))
        return {**headers, "Accept-Encoding": "identity"} | ({"Authorization": token} if token else {})

    @contextmanager
    def _follow(self, url: str, headers: dict[str, str]) -> Iterator[httpx2.Response]:
        """Follow redirects ourselves: each target is checked, and no other host sees our token."""
        for _ in range(_REDIRECTS):
            with self._http.stream("GET", url, headers=headers) as response:
                if response.status_code not in (301, 302, 303, 307, 308):
                    yield response
                    return
                target = urljoin(url, response.headers.get("Location", ""))
            self._check_target(target)
            if urlsplit(target).netloc != urlsplit(url).netloc:
                headers = {name: value for name, value in headers.items() if name != "Authorization"}
            url = target
        raise RegistryError(f"{self._name} redirects in circles")

    def _check_target(self, url: str) -> None:
        """Refuse to be sent to where the registry itself may not be able to go."""
        parts = urlsplit(url)
        if parts.scheme != "https" and not (parts.scheme == "http" and self._plain):
            raise RegistryError(f"{self._name} sends us to {url[:100]!r}, which is not https")
        host = parts.hostname or ""
        if host != self._name and _level([host], self._resolve) > self._level:
            raise RegistryError(
                f"{self._name} sends us to {host!r}, an address inside this machine or network; refused"
            )

    def _authorize(self, challenge: str, what: str) -> str:
        """Answer "401 Unauthorized": the value of the Authorization header."""
        kind, _, rest = challenge.partition(" ")
        if kind.lower() == "basic" and self._login is not None and not self._login.token:
            pair = f"{self._login.user}:{self._login.password}".encode()
            return f"Basic {base64.b64encode(pair).decode()}"
        parameters: dict[str, str] = {str(name): str(value) for name, value in _PARAMETER.findall(rest)}
        if kind.lower() != "bearer" or "realm" not in parameters:
            raise Denied(f"{self._name} does not let us see {what}; `docker login {self._name}` may help")
        self._check_target(parameters["realm"])
        return f"Bearer {self._token(parameters, what)}"

    def _token(self, parameters: dict[str, str], what: str) -> str:
        query: dict[str, str] = {str(name): parameters[name] for name in ("service", "scope") if name in parameters}
        auth = (self._login.user, self._login.password) if self._login and not self._login.token else None
        try:
            if self._login is not None and self._login.token:
                form = {
                    **query,
                    "grant_type": "refresh_token",
                    "refresh_token": self._login.token,
                    "client_id": "openmodal",
                }
                response = self._http.post(parameters["realm"], data=form)
            else:
                response = self._http.get(parameters["realm"], params=httpx2.QueryParams(query), auth=auth)
            answer = msgspec.json.decode(response.content) if response.status_code == 200 else {}
        except (httpx2.HTTPError, msgspec.DecodeError) as error:
            raise RegistryError(f"the token server of {self._name} cannot be asked: {error}") from error
        token = answer.get("token") or answer.get("access_token") if isinstance(answer, dict) else None
        if not isinstance(token, str):
            raise Denied(f"{self._name} gives no access to {what}; check its name, or `docker login {self._name}`")
        return token


def _scope_of(url: str) -> str:
    """Tokens are for one repository."""
    return re.sub(r"/(manifests|blobs)/[^/]*$", "", url)


def _good(response: httpx2.Response, what: str, host: str) -> httpx2.Response:
    status = response.status_code
    if status in (200, 206):
        return response
    if status in (429, 500, 502, 503, 504):
        after = response.headers.get("Retry-After", "")
        raise _Again(f"it answers {status}", min(float(after), 60.0) if after.isdigit() else 0.0)
    if status == 404:
        raise RegistryError(f"{host} has no {what}; check name and tag")
    if status in (401, 403):
        raise Denied(f"{host} gives no access to {what}; check its name, or `docker login {host}`")
    raise RegistryError(f"{host} answers {status} for {what}")


def _limited(response: httpx2.Response, limit: int, what: str) -> bytes:
    body = bytearray()
    deadline = time.monotonic() + _GRACE
    for data in response.iter_raw():
        body += data
        if len(body) > limit:
            raise RegistryError(f"{what} is larger than {limit} bytes; refused")
        if time.monotonic() > deadline:
            raise RegistryError(f"{what} comes too slowly; try again later")
    return bytes(body)


def _check_progress(size: int, blob: Descriptor, deadline: float) -> None:
    if size > blob.size:
        raise RegistryError(f"the registry sends more than the {blob.size} bytes that {blob.digest} has; refused")
    if time.monotonic() > deadline:
        raise RegistryError(f"{blob.digest} comes too slowly; try again later")


_PUBLIC, _PRIVATE, _LOOPBACK, _LINK_LOCAL = range(4)


def _level(hosts: list[str], resolver: Resolve | None = None) -> int:
    """How private the hosts' most private address is. Link-local includes clouds' metadata."""
    level = _PUBLIC
    for host in hosts:
        try:
            addresses = [ipaddress.ip_address(host)]
        except ValueError:
            addresses = [ipaddress.ip_address(text.partition("%")[0]) for text in (resolver(host) if resolver else [])]
        for address in addresses:
            level = max(level, _level_of(address))
    return level


def _level_of(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> int:
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    if address.is_link_local or address.is_unspecified or address.is_multicast:
        return _LINK_LOCAL
    if address.is_loopback:
        return _LOOPBACK
    return _PRIVATE if address.is_private else _PUBLIC
