"""Ids that the caller chooses: however often it is asked for, there is one sandbox."""

from __future__ import annotations

import os
from typing import Any

import pytest

from openmodal.app import App
from openmodal.engines import Engine
from openmodal.errors import AlreadyExistsError
from openmodal.image import Image
from openmodal.testing.faces import Face
from openmodal.testing.fixtures import Create, SandboxClass, promise, python_starts


@pytest.fixture
def id() -> str:
    """One that nobody has used: records of those that ended are kept for a day."""
    return f"chosen-{os.urandom(6).hex()}"


class TestIds:
    @promise("ids")
    def test_the_same_call_again_gives_the_same_sandbox(self, create: Create, id: str) -> None:
        first = create(id=id, tags={"a": "b"}, env={"SECRET": "1"})
        assert first.id == id
        first.filesystem.write_text("/tmp/mark", "x")
        again = create(id=id, tags={"a": "b"}, env={"SECRET": "2"})
        assert again.filesystem.read_text("/tmp/mark") == "x", "values of variables are no part of it"
        for different, names in (({"memory": 77}, "memory"), ({"timeout": 123, "app": App("other")}, "app, timeout")):
            with pytest.raises(AlreadyExistsError, match=f"another .*{names}"):
                create(id=id, **{"tags": {"a": "b"}, "env": {"SECRET": "1"}, **different})
        assert first.exec("true").returncode == 0

    @promise("ids")
    def test_of_many_calls_at_once_one_makes_it_and_all_get_it(
        self, face: Face, sandboxes: SandboxClass, app: App, image: Image, engine: Engine, id: str
    ) -> None:
        options: dict[str, Any] = {"app": app, "image": image, "engine": engine, "timeout": 60}
        calls = [face.start(sandboxes.create, id=id, name=id, **options) for _ in range(6)]
        made = [call.result(100) for call in calls]
        assert {sandbox.id for sandbox in made} == {id}
        made[0].filesystem.write_text("/tmp/mark", "x")
        assert {sandbox.filesystem.read_text("/tmp/mark") for sandbox in made} == {"x"}
        assert [sandbox.id for sandbox in sandboxes.list(engine=engine) if sandbox.id.startswith("chosen-")] == [id]
        made[0].terminate()

    @promise("ids")
    @promise("many_processes")
    def test_who_lost_the_answer_asks_again(
        self, sandboxes: SandboxClass, engine: Engine, engine_name: str, app: App, image: Image, id: str
    ) -> None:
        source = """
            app = openmodal.App("contract")
            openmodal.Sandbox.create(app=app, image=image, engine=argv[0], id=argv[1], timeout=60)
            os.kill(os.getpid(), 9)
        """
        with python_starts(source, engine_name, id, image=image) as child:
            assert child.wait(300) == -9
        created = sandboxes.from_id(id, engine=engine).status().created
        sandbox = sandboxes.create(app=app, image=image, engine=engine, id=id, timeout=60)
        assert (sandbox.id, sandbox.status().created) == (id, created)
        sandbox.terminate()

    @promise("ids")
    def test_an_id_is_used_once(self, create: Create, id: str) -> None:
        create(id=id).terminate()
        with pytest.raises(AlreadyExistsError, match="ended: it was terminated; an id is used once"):
            create(id=id)

    @promise("ids")
    def test_a_call_that_failed_has_not_used_it(self, create: Create, id: str) -> None:
        other = create(name="unique")
        with pytest.raises(AlreadyExistsError, match="unique"):
            create(id=id, name="unique")
        other.terminate()
        assert create(id=id, name="unique").id == id

    @promise("ids")
    def test_the_id_of_one_whose_maker_chose_none_is_taken(self, create: Create) -> None:
        sandbox = create()
        with pytest.raises(AlreadyExistsError, match="choose another"):
            create(id=sandbox.id)
        assert sandbox.exec("true").returncode == 0


__all__ = ["TestIds"]
