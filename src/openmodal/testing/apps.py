"""`App.run`: sandboxes end with the run they belong to."""

from __future__ import annotations

import pytest

from openmodal.app import App
from openmodal.engines import Engine
from openmodal.errors import InvalidError
from openmodal.image import Image
from openmodal.testing.faces import Face
from openmodal.testing.fixtures import Create, promise, python_starts


class TestApp:
    def test_sandboxes_of_a_run_end_with_it(self, face: Face, app: App, create: Create, engine: Engine) -> None:
        before = create()
        with face(app.run(engine=engine)):
            one, two = create(), create()
            assert one.exec("true").returncode == 0
        assert [one.poll(), two.poll()] == [137, 137]
        assert before.poll() is None, "it does not belong to the run"

    @pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
    def test_sandboxes_of_a_run_end_on_an_exception(
        self, face: Face, app: App, create: Create, engine: Engine, error: type[BaseException]
    ) -> None:
        made = []
        with pytest.raises(error), face(app.run(engine=engine)):  # noqa: PT012
            made.append(create())
            raise error
        assert made[0].poll() == 137

    def test_detached_sandboxes_live_on(self, face: Face, app: App, create: Create, engine: Engine) -> None:
        with face(app.run(detach=True, engine=engine)):
            sandbox = create()
        assert sandbox.exec("true").returncode == 0

    def test_sandboxes_of_another_app_live_on(self, face: Face, app: App, create: Create, engine: Engine) -> None:
        with face(app.run(engine=engine)):
            other = create(app=App("other"))
        assert other.poll() is None

    def test_runs_of_one_app_do_not_end_each_others_sandboxes(
        self, face: Face, app: App, create: Create, engine: Engine
    ) -> None:
        twin = App("contract")
        with face(app.run(engine=engine)):
            mine = create()
            with face(twin.run(engine=engine)):
                theirs = create(app=twin)
            assert theirs.poll() == 137
            assert mine.poll() is None

    def test_an_app_runs_once_at_a_time_and_again_afterwards(self, face: Face, app: App, engine: Engine) -> None:
        with face(app.run(engine=engine)), pytest.raises(InvalidError), face(app.run(engine=engine)):
            pass
        with face(app.run(engine=engine)):
            pass

    @promise("many_processes")
    def test_control_c_ends_the_sandboxes_of_the_run(self, engine: Engine, engine_name: str, image: Image) -> None:
        source = """
            app = openmodal.App("contract")
            try:
                with app.run(engine=argv[0]):
                    sandbox = openmodal.Sandbox.create(app=app, image=image, engine=argv[0], timeout=60)
                    threading.Timer(0.3, signal.pthread_kill, [threading.main_thread().ident, signal.SIGINT]).start()
                    sandbox.exec("sleep", "54321")
            except KeyboardInterrupt:
                print(sandbox.poll())
        """
        with python_starts(source, engine_name, image=image) as child:
            assert child.communicate(timeout=600)[0] == "137\n"
            assert child.returncode == 0

    def test_names_that_cannot_be_are_the_callers_mistake(self) -> None:
        for name in ("", "a/b", "../up", "white space", "x" * 64, "-dash", "ü"):
            with pytest.raises(InvalidError):
                App(name)

    def test_lookup_is_the_app_of_that_name(self, create: Create) -> None:
        assert create(app=App.lookup("contract", create_if_missing=True)).id.startswith("contract-")


__all__ = ["TestApp"]
