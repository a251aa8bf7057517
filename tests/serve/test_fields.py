"""The tables of fields, beside the messages of the client's wheel."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from google.protobuf.descriptor import Descriptor
from grpclib.server import Stream
from modal_proto import api_grpc, api_pb2
from modal_proto import task_command_router_grpc as router_grpc
from modal_proto import task_command_router_pb2 as router

from openmodal import _args
from openmodal.errors import InvalidError
from openmodal.serve import fields, ids
from openmodal.serve.calls import Call

TABLES = [
    (fields.SANDBOX, api_pb2.Sandbox),
    (fields.IMAGE, api_pb2.Image),
    (fields.EXEC, router.TaskExecStartRequest),
    (fields.SNAPSHOT, router.TaskSnapshotDirectoryRequest),
]


def call() -> Call:
    return Call("Test", {}, object.__new__(Stream))


def known(table: fields.Table) -> set[str]:
    return {*table.honoured, *table.harmless, *dict(table.ignored), *dict(table.refused)}


def all_fields(descriptor: Descriptor, names: set[str], before: str = "") -> Iterator[str]:
    for field in descriptor.fields:
        path = f"{before}{field.name}"
        yield path
        if field.message_type and any(name.startswith(f"{path}.") for name in names):
            yield from all_fields(field.message_type, names, f"{path}.")


@pytest.mark.parametrize(("table", "message"), TABLES)
def test_tables_name_fields_that_there_are(table: fields.Table, message: Any) -> None:
    # What is asked of a snapshot is also asked of a mount.
    assert known(table) - {"image_id"} <= set(all_fields(message.DESCRIPTOR, known(table)))


@pytest.mark.parametrize(("table", "message"), TABLES)
def test_a_field_that_is_not_honoured_is_refused_by_its_name(table: fields.Table, message: Any) -> None:
    for name in dict(table.refused):
        made = message()
        field = made.DESCRIPTOR.fields_by_name[name]
        if field.is_repeated and field.message_type and not field.message_type.GetOptions().map_entry:
            getattr(made, name).add()
        elif field.is_repeated and not field.message_type:
            getattr(made, name).append("x")
        elif field.message_type and not field.is_repeated:
            getattr(made, name).SetInParent()
        elif not field.is_repeated:
            setattr(
                made, name, b"x" if field.type == field.TYPE_BYTES else "x" if field.type == field.TYPE_STRING else 1
            )
        else:
            continue
        with pytest.raises(InvalidError, match="not supported"):
            fields.check(made, table, call())


def test_a_field_of_a_client_of_the_future_is_refused() -> None:
    made = api_pb2.Sandbox.FromString(bytes([0xFA, 0xFF, 0x01, 0x01, 0x78]))  # number 4095
    with pytest.raises(InvalidError, match="field 4095 is not known to OpenModal"):
        fields.check(made, fields.SANDBOX, call())


def test_what_is_ignored_is_told() -> None:
    asked = call()
    fields.check(api_pb2.Sandbox(verbose=True, cloud_provider_str="aws"), fields.SANDBOX, asked)
    assert len(asked.warnings) == 2


def test_all_calls_are_served_or_refused() -> None:
    """A new release shows its new calls here: the numbers of those that there are."""
    from openmodal.serve.calls import handlers

    control = handlers(api_grpc.ModalClientBase, (), lambda call, request: None)
    commands = handlers(router_grpc.TaskCommandRouterBase, (), lambda call, request: None)
    assert len(control) > 200
    assert len(commands) > 20


@pytest.mark.parametrize("text", ["__harbor__", "a b", "ä", "n" * 64, "/"])
def test_names_that_engines_do_not_take_are_given_others(text: str) -> None:
    assert _args.name("name", ids.name(text)) != text
    assert ids.name(text) == ids.name(text) != ids.name(f"{text}x")
    assert ids.name("my-agent.1") == "my-agent.1"


@pytest.mark.parametrize("old", [True, False])
def test_ids_come_back_as_they_were(old: bool) -> None:
    chosen = ids.new_sandbox("key", old=old)
    assert chosen == ids.new_sandbox("key", old=old) != ids.new_sandbox("other", old=old)
    assert len(chosen) == len("sb-") + (22 if old else 26)
    for id in (chosen, "app-1a2b3c4d", "a.b_c-00000000"):
        wire = ids.sandbox_on_wire(id)
        assert wire.removeprefix("sb-").isalnum()
        assert ids.sandbox(wire) == id
        assert ids.sandbox_of_task(ids.task(wire)) == wire
    assert ids.app_and_run(ids.app("my-app", "run1")) == ("my-app", "run1")
