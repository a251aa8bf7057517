"""Housekeeping: what is left is cleared away, and images are listed and removed, and nothing that is in use is touched."""

from __future__ import annotations

import secrets

import pytest

from openmodal import housekeeping
from openmodal.engines import Engine, lacking
from openmodal.errors import UnsupportedError
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

    def test_what_the_engine_lacks_is_refused(self, face: Face, engine: Engine) -> None:
        if "gc" in lacking(engine):
            with pytest.raises(UnsupportedError, match=f"the {engine.name} engine"):
                face(housekeeping.gc)(engine=engine)
        if "images" in lacking(engine):
            with pytest.raises(UnsupportedError, match=f"the {engine.name} engine"):
                face(housekeeping.prune)(engine=engine)


__all__ = ["TestHousekeeping"]
