"""Who may see the page: whoever shows a token gets a cookie for a week.

The cookie is bound to a path below /api/ that nobody can guess. Cookies know no ports: without such
a path, a browser would send ours to each port of this machine, so to what listens in a sandbox.
It is signed with a key of the state folder, so a page that is started again knows its visitors.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections.abc import Iterator, Mapping

COOKIE = "openmodal"
_WEEK = 7 * 24 * 3600
_VISITOR = "page"
"""What somebody is called who came with the token that the page was started with."""


class Sessions:
    """The tokens of a page, and the cookies that it gives for them."""

    def __init__(self, key: bytes, tokens: Mapping[str, str] | None = None) -> None:
        """`tokens`: names by tokens that may be used again and again."""
        self._key = key
        self._tokens = dict(tokens or {})
        self._once = ""

    def once(self) -> str:
        """A new token, for one visitor. It replaces the last one."""
        self._once = secrets.token_urlsafe(24)
        return self._once

    def opened(self, token: str) -> tuple[str, str] | None:
        """The place and the cookie of a new visitor; None if the token is none of ours."""
        name = self._name(token)
        if name is None:
            return None
        place = secrets.token_hex(12)
        signed = f"{place}.{int(time.time()) + _WEEK}.{name.encode().hex()}"
        cookie = f"{COOKIE}={signed}.{self._signature(signed)}; Path=/api/{place}/; Max-Age={_WEEK}"
        return place, f"{cookie}; HttpOnly; SameSite=Strict"

    def visitor(self, place: str, cookies: str) -> str | None:
        """The name of whoever has a good cookie for this place; None if there is none."""
        for value in _values(cookies):
            signed, _, signature = value.rpartition(".")
            if not _same(signature, self._signature(signed)):
                continue
            where, until, name = signed.split(".")
            if _same(where, place) and int(until) > time.time():
                return bytes.fromhex(name).decode()
        return None

    def _name(self, token: str) -> str | None:
        # All are compared, so that the time tells nothing.
        found = [name for known, name in self._tokens.items() if _same(known, token)]
        if self._once and _same(self._once, token):
            self._once = ""
            return _VISITOR
        return found[0] if found else None

    def _signature(self, text: str) -> str:
        return hmac.new(self._key, f"page {text}".encode(), hashlib.sha256).hexdigest()


def _values(cookies: str) -> Iterator[str]:
    """All cookies of our name: another port of this machine may have set one, too."""
    for cookie in cookies.split(";"):
        name, _, value = cookie.strip().partition("=")
        if name == COOKIE:
            yield value


def _same(one: str, other: str) -> bool:
    return hmac.compare_digest(one.encode(), other.encode())


__all__ = ["COOKIE", "Sessions"]
