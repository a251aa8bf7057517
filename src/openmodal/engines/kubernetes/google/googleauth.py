"""Access tokens of Google's "application default credentials": of GOOGLE_APPLICATION_CREDENTIALS,
or of a machine or pod of the cloud.

google-auth knows where they come from; here is only the client of HTTP that it is lent, so that it
needs no second one.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import httpx2

from openmodal.errors import EngineError, UnsupportedError, extra

try:
    import google.auth
    from google.auth import exceptions
except ModuleNotFoundError as missing:
    raise UnsupportedError(
        f"there is no gcloud on PATH, and other logins of Google Cloud need google-auth; {extra('gke')}"
    ) from missing

_SCOPES = ("https://www.googleapis.com/auth/cloud-platform",)
_SECONDS = 30.0


def token() -> str:
    """An access token.

    Raises:
        EngineError: there are no credentials here, or they are refused.
    """
    library: Any = google.auth  # some of its functions have no types
    try:
        with httpx2.Client() as http:
            request = functools.partial(_ask, http)
            found, _ = library.default(scopes=_SCOPES, request=request)
            found.refresh(request)
            return str(found.token)
    except exceptions.GoogleAuthError as error:
        reason = str(error).partition(".")[0]
        raise EngineError(
            f"there is no login of Google Cloud ({reason}); run `gcloud auth login`, or set GOOGLE_APPLICATION_CREDENTIALS"
        ) from error


class _Answer(NamedTuple):
    """What google-auth looks at of an answer."""

    status: int
    headers: Mapping[str, str]
    data: bytes


def _ask(
    http: httpx2.Client,
    url: str,
    method: str = "GET",
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
    timeout: float | None = None,
    **_unused: Any,
) -> _Answer:
    """The client as google-auth calls it (google.auth.transport.Request)."""
    try:
        answer = http.request(method, url, content=body, headers=headers, timeout=timeout or _SECONDS)
    except httpx2.TransportError as error:
        failure: Any = exceptions.TransportError
        raise failure(error) from error
    return _Answer(answer.status_code, answer.headers, answer.content)
