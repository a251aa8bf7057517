"""Files of volumes through a door, which all its clients share."""

from __future__ import annotations

import io
import os
import re
import socket
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from openmodal import Volume, _config
from openmodal.serve.access import Access
from openmodal.serve.kept import Kept
from tests.serve.conftest import TOKEN, Door
from tests.serve.test_door import BEGIN, client, serve

pytestmark = pytest.mark.embedded

HUGE = (
    BEGIN
    + """
volume = modal.Volume.from_name("huge", create_if_missing=True)
made = modal.Sandbox.create(app=app, image=image, volumes={"/v": volume})
try:
    # As much as the file system takes: holes cost it nothing.
    made.exec("sh", "-c", "for size in 1000 16000 8000000; do dd of=/v/huge bs=1 count=0 seek=${size}G; done").wait()
    next(iter(volume.read_file("huge")))
except modal.exception.InvalidError as error:
    print(error)
finally:
    made.terminate()
    modal.Volume.objects.delete("huge")
"""
)


def test_a_file_of_many_tebibytes_takes_nothing_of_the_door(door: Door) -> None:
    """A URL was made for each of its blocks, while all other clients waited: for PiB, without an
    end of memory."""
    said, errors = client(HUGE, door).communicate(timeout=300)
    assert "up to 16 GiB" in said and "split" in said, errors
    peak = re.search(r"VmHWM:\s*(\d+)", Path(f"/proc/{door.process.pid}/status").read_text())
    assert peak and int(peak[1]) < 300_000, "KiB"


LEAVES = (
    BEGIN
    + """
import os, threading, time
volume = modal.Volume.from_name("left")
for _ in range(20):
    threading.Thread(target=lambda: list(volume.read_file("file")), daemon=True).start()
time.sleep(1)
os._exit(0)
"""
)


def test_who_leaves_in_the_middle_of_a_download_is_no_mistake_of_the_door() -> None:
    """What the door of a program was still reading was cancelled, and told by a traceback."""
    volume = Volume.from_name("left", create_if_missing=True, engine="embedded")
    with volume.batch_upload(force=True) as upload:
        upload.put_file(io.BytesIO(os.urandom(60_000_000)), "file")
    try:
        done = serve("--", sys.executable, "-c", LEAVES)
    finally:
        Volume.delete("left", engine="embedded")
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr


def test_who_leaves_in_the_middle_of_an_upload_is_no_mistake_of_the_door(door: Door, tmp_path: Path) -> None:
    access = Access((TOKEN,), Kept(_config.state() / "serve").key())
    path = f"/blobs/{access.signed('0' * 64 + '/1000000')}"
    with socket.create_connection(("127.0.0.1", door.port)) as sent:
        sent.sendall(f"PUT {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n".encode() + bytes(5000))
        time.sleep(0.5)
    time.sleep(0.5)
    with urllib.request.urlopen(f"{door.url}/healthz"):
        pass
    assert "Traceback" not in (tmp_path / "log").read_text()
