"""What docs/protocol.md promises of REST, held against the real program."""

from __future__ import annotations

import time

import pytest

from tests.native.conftest import Start
from tests.native.frames import Link, Refused, frame

REST, OK, LATER = 0x1C, 0x23, 7


def ask(link: Link, *, sure: bool) -> None:
    link.send(frame(REST, bytes([sure])))
    link.expect(OK)


def test_who_asks_is_told_when_nobody_uses_it_and_whether_that_is_so_still(start: Start) -> None:
    agent = start("--idle-ms", "400", "--rests", "1")
    asks, uses = agent.link(), agent.link()
    with pytest.raises(Refused) as caught:
        ask(asks, sure=True)
    assert caught.value.code == LATER
    begun = time.monotonic()
    ask(asks, sure=False)
    assert time.monotonic() - begun >= 0.35
    uses.ping()
    with pytest.raises(Refused):
        ask(asks, sure=True)
    for _ in range(2):
        ask(asks, sure=False)
        ask(asks, sure=True)
    uses.ping()
    assert agent.process.poll() is None, "an idle one does not end"


@pytest.mark.parametrize("payload", [b"", b"\0\0"], ids=bytes.hex)
def test_what_is_no_rest_closes_the_link(start: Start, payload: bytes) -> None:
    link = start("--idle-ms", "400", "--rests", "1").link()
    link.send(frame(REST, payload))
    with pytest.raises(Refused) as caught:
        link.expect(OK)
    assert caught.value.code == 1
