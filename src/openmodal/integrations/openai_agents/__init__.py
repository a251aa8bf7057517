"""OpenAI Agents SDK: `RunConfig(sandbox=SandboxRunConfig(client=OpenModalSandboxClient()))`.

A session is a sandbox; its workspace is a folder in it. docs/integrations/openai_agents.md is the
user's page.
"""

from __future__ import annotations

import uuid

from agents.sandbox.manifest import Manifest
from agents.sandbox.session import BaseSandboxClient, SandboxSession, SandboxSessionState
from agents.sandbox.snapshot import SnapshotBase, SnapshotSpec, resolve_snapshot

from openmodal.app import App
from openmodal.errors import NotFoundError
from openmodal.integrations import image_from, that_ends_with_us
from openmodal.integrations.openai_agents.session import OpenModalOptions, OpenModalSession, OpenModalState
from openmodal.sandbox import Sandbox

APP = App("openai-agents")


class OpenModalSandboxClient(BaseSandboxClient[OpenModalOptions]):
    """Makes the sandboxes of runs; each ends with its session, or with this process."""

    backend_id = "openmodal"
    supports_default_options = True

    async def create(
        self,
        *,
        snapshot: SnapshotSpec | SnapshotBase | None = None,
        manifest: Manifest | None = None,
        options: OpenModalOptions | None = None,
    ) -> SandboxSession:
        manifest = self._validate_manifest_for_create(manifest or Manifest())
        options = options or OpenModalOptions()
        sandbox, session_id = await _made(options), uuid.uuid4()
        state = OpenModalState(
            session_id=session_id,
            snapshot=resolve_snapshot(snapshot, str(session_id)),
            manifest=manifest,
            exposed_ports=options.exposed_ports,
            sandbox_id=sandbox.id,
            options=options,
        )
        return self._wrap_session(OpenModalSession(state, sandbox))

    async def resume(self, state: SandboxSessionState) -> SandboxSession:
        """Go on in the session's sandbox, or in a new one if that has ended."""
        assert isinstance(state, OpenModalState)
        state.assert_path_grants_rebound()
        found = await _found(state)
        session = OpenModalSession(state, found or await _made(state.options))
        if not found:
            state.sandbox_id = session.sandbox.id
            state.workspace_root_ready = False
        session._set_start_state_preserved(found is not None)
        return self._wrap_session(session)

    async def delete(self, session: SandboxSession) -> SandboxSession:
        assert isinstance(session._inner, OpenModalSession)
        await session._inner.sandbox.terminate.aio()
        return session

    def deserialize_session_state(self, payload: dict[str, object]) -> SandboxSessionState:
        return self._deserialize_session_state_payload(payload, OpenModalState)


async def _made(options: OpenModalOptions) -> Sandbox:
    image, given = image_from(options.image), that_ends_with_us(options.options)
    return await Sandbox.create.aio(app=APP, image=image, ports=options.exposed_ports, **given)


async def _found(state: OpenModalState) -> Sandbox | None:
    """The session's sandbox, if it runs."""
    try:
        sandbox = await Sandbox.from_id.aio(state.sandbox_id, engine=state.options.options.get("engine"))
        return None if (await sandbox.status.aio()).ended else sandbox
    except NotFoundError:
        return None


__all__ = ["OpenModalOptions", "OpenModalSandboxClient", "OpenModalSession", "OpenModalState"]
