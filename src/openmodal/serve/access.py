"""Who may call: a token always, and for calls about one sandbox a proof that names that sandbox.

The proof is a JSON Web Token (RFC 7519) with HS256, whose key only the doors of one state folder
have. The client reads when it expires and asks for another.
"""

from __future__ import annotations

import base64
import binascii
import functools
import hashlib
import hmac
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass

from grpclib.const import Status
from grpclib.exceptions import GRPCError

_DAY = 24 * 3600.0
_PROOFS_KNOWN = 1000


@dataclass(frozen=True)
class Access:
    """Pairs of token id and secret that may call, and the key that proofs are signed with."""

    tokens: tuple[tuple[str, str], ...]
    key: bytes

    def admit(self, metadata: Mapping[str, object]) -> None:
        """Let a call of the control service pass.

        Raises:
            GRPCError: UNAUTHENTICATED, because it has no token, or a wrong one.
        """
        said = (str(metadata.get("x-modal-token-id", "")), str(metadata.get("x-modal-token-secret", "")))
        # All pairs are compared, so that the time tells nothing.
        good = [_same(said[0], id) & _same(said[1], secret) for id, secret in self.tokens]
        if not any(good):
            raise GRPCError(
                Status.UNAUTHENTICATED,
                "the token is not one of this door's; set MODAL_TOKEN_ID and MODAL_TOKEN_SECRET to what `openmodal serve` printed",
            )

    def admit_to(self, sandbox: str, metadata: Mapping[str, object]) -> None:
        """Let a call about one sandbox pass.

        Raises:
            GRPCError: UNAUTHENTICATED, because it has no proof for it.
        """
        if self._subject(_proof(metadata)) != sandbox:
            raise GRPCError(Status.UNAUTHENTICATED, "the call has no valid proof for this sandbox")

    def admit_somewhere(self, metadata: Mapping[str, object]) -> None:
        """Let a call pass that is about a sandbox which is not known yet.

        Raises:
            GRPCError: UNAUTHENTICATED, because it has no proof for any.
        """
        if not self._subject(_proof(metadata)):
            raise GRPCError(Status.UNAUTHENTICATED, "the call has no valid proof for a sandbox")

    def proof(self, subject: str) -> str:
        """A signed proof for a day: for a sandbox; for "": for none."""
        head = _encoded(b'{"alg":"HS256","typ":"JWT"}')
        body = _encoded(json.dumps({"sub": subject, "exp": int(time.time() + _DAY)}).encode())
        return f"{head}.{body}.{self._signature(f'{head}.{body}')}"

    def signature(self, text: str) -> str:
        """What only a door of this state folder can write beside a text."""
        return hmac.new(self.key, text.encode(), hashlib.sha256).hexdigest()

    def signed(self, text: str) -> str:
        """A text as a part of a URL that is good for a day."""
        until = f"{text}/{int(time.time() + _DAY)}"
        return f"{until}/{self.signature(until)}"

    def is_signed(self, text: str, until: int, signature: str) -> bool:
        """Whether `signed` made these parts, and they are still good."""
        return _same(signature, self.signature(f"{text}/{until}")) and time.time() < until

    def _signature(self, text: str) -> str:
        return _encoded(hmac.new(self.key, text.encode(), hashlib.sha256).digest())

    def _subject(self, proof: str) -> str | None:
        """What a proof names; None if it is none. Each call of a command has the same one."""
        if proof not in self._known:
            if (claims := self._claims(proof)) is None:
                return None
            while len(self._known) >= _PROOFS_KNOWN:
                del self._known[next(iter(self._known))]
            self._known[proof] = claims
        subject, until = self._known[proof]
        return subject if until > time.time() else None

    @functools.cached_property
    def _known(self) -> dict[str, tuple[str, float]]:
        return {}

    def _claims(self, proof: str) -> tuple[str, float] | None:
        """Whom a proof names, and until when it is good; None if no door has signed it."""
        signed, _, signature = proof.rpartition(".")
        if not _same(signature, self._signature(signed)):
            return None
        try:
            claims = json.loads(base64.urlsafe_b64decode(signed.partition(".")[2] + "=="))
        except (ValueError, binascii.Error):
            return None
        return str(claims["sub"]), float(claims.get("exp", 0))


def _proof(metadata: Mapping[str, object]) -> str:
    return str(metadata.get("authorization", "")).removeprefix("Bearer ")


def _encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _same(one: str, other: str) -> bool:
    return hmac.compare_digest(one.encode(), other.encode())
