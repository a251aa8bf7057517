"""Housekeeping: what is left is cleared away, and images are listed and removed, and nothing that is in use is touched."""

from __future__ import annotations

import secrets
import time

import pytest

from openmodal import housekeeping
from openmodal.engines import Engine, lacking
from openmodal.errors import NotFoundError, UnsupportedError
from openmodal.image import Image
from openmodal.sandbox import Sandbox
from openmodal.testing.faces import Face
from openmodal.testing.fixtures import promise


class TestHousekeeping:
    @promise("gc")
    def test_gc_leaves_running_sandboxes_alone(self, face: Face, engine: Engine, sandbox: Sandbox) -> None:
        gc = face(housekeeping.gc)
        assert not [line for line in gc(check=True, engine=engine).removed if sandbox.id in line]
        gone = gc(engine=engine)
        assert not [line for line in gone.removed if sandbox.id in line]
        assert sandbox.exec("true").returncode == 0

    @promise("images")
    def test_an_image_is_listed_when_it_is_built_and_stays_while_it_is_new(
        self, face: Face, engine: Engine, image: Image
    ) -> None:
        new = image.run_commands(f": {secrets.token_hex(8)}")
        new.build(engine=engine)
        listed = face(housekeeping.images)(engine=engine)
        assert listed == sorted(listed, key=lambda built: -built.used)
        face(housekeeping.prune)(unused_for=86400 * 365, engine=engine)
        assert listed[0].key in {built.key for built in face(housekeeping.images)(engine=engine)}

    @promise("images")
    def test_an_images_history_tells_its_steps_the_last_one_first(
        self, face: Face, engine: Engine, image: Image
    ) -> None:
        first, last = (secrets.token_hex(8) for _ in range(2))
        image.run_commands(f"echo {first} > /first", f"head -c 100000 /dev/zero > /{last}").build(engine=engine)
        key = face(housekeeping.images)(engine=engine)[0].key
        steps = face(housekeeping.history)(key, engine=engine)
        assert last in steps[0].step
        assert first in steps[1].step
        assert steps[0].size >= 100_000 > steps[1].size
        assert steps[0].made >= steps[1].made > time.time() - 86400
        with pytest.raises(NotFoundError, match="openmodal image list"):
            face(housekeeping.history)("0" * 64, engine=engine)

    def test_what_the_engine_lacks_is_refused(self, face: Face, engine: Engine) -> None:
        if "gc" in lacking(engine):
            with pytest.raises(UnsupportedError, match=f"the {engine.name} engine"):
                face(housekeeping.gc)(engine=engine)
        if "images" in lacking(engine):
            with pytest.raises(UnsupportedError, match=f"the {engine.name} engine"):
                face(housekeeping.prune)(engine=engine)


__all__ = ["TestHousekeeping"]
