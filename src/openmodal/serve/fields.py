"""Which fields of a message are honoured. Any other that is set is refused by its name, so that a
new option of a new client is never dropped in silence.

The tables are compared with the messages of the client's wheel by a test.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet

from openmodal.errors import InvalidError
from openmodal.serve.calls import Call


@dataclass(frozen=True)
class Table:
    """What becomes of a message's fields, by their names; a name with dots is below another field.

    Attributes:
        honoured: they mean what they say.
        harmless: without them nothing that the program can see is different.
        ignored: field → what is told as a warning.
        refused: field → why, and what to do instead.
    """

    honoured: frozenset[str]
    harmless: frozenset[str] = frozenset()
    ignored: tuple[tuple[str, str], ...] = ()
    refused: tuple[tuple[str, str], ...] = ()


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


SANDBOX = Table(
    honoured=_words(
        "entrypoint_args image_id mount_ids secret_ids timeout_secs idle_timeout_secs workdir name "
        "block_network environment_variables network_access resources resources.milli_cpu "
        "resources.milli_cpu_max resources.memory_mb resources.memory_mb_max "
        "resources.ephemeral_disk_mb open_ports readiness_probe runtime volume_mounts"
    ),
    harmless=_words("direct_sandbox_commands_enabled resources.gpu_config runtime_debug worker_id"),
    ignored=(
        ("cloud_provider", "cloud= is ignored: sandboxes run where this door runs"),
        ("cloud_provider_str", "cloud= is ignored: sandboxes run where this door runs"),
        ("scheduler_placement", "region= is ignored: sandboxes run where this door runs"),
        ("pty_info", "pty= of a main command is ignored: it has pipes; sandbox.exec(…, pty=True) has a terminal"),
        ("verbose", "verbose= is ignored: `openmodal sandbox inspect` tells what happened"),
    ),
    refused=(
        ("proxy_id", "proxy= is not supported; use outbound_domain_allowlist= to say what is reached"),
        ("nfs_mounts", "network_file_systems= is not supported; use volumes="),
        ("cloud_bucket_mounts", "CloudBucketMount is not supported; copy the data into a Volume"),
        ("s3_mounts", "CloudBucketMount is not supported; copy the data into a Volume"),
        ("custom_domain", "custom_domain= is not supported; use tunnels()"),
        ("include_oidc_identity_token", "include_oidc_identity_token= is not supported; pass a Secret"),
        ("i6pn_enabled", "i6pn is not supported; sandboxes do not reach each other"),
        ("enable_snapshot", "memory snapshots are not supported; use snapshot_filesystem()"),
        ("experimental_options", "experimental_options= is not supported"),
        ("experimental_options_v2", "experimental_options= is not supported"),
        ("experimental_outbound_policy", "outbound_policy= is not supported; use outbound_domain_allowlist="),
        ("outbound_policy", "outbound_policy= is not supported; use outbound_domain_allowlist="),
        ("inbound_cidr_allowlist", "inbound_cidr_allowlist= is not supported; tunnels are on loopback only"),
    ),
)

IMAGE = Table(
    honoured=_words(
        "base_images dockerfile_commands context_files context_mount_id build_args version secret_ids image_registry_config"
    ),
    harmless=_words("runtime runtime_debug arch gpu_config"),
    refused=(
        ("build_function", "Image.run_function is not supported; use run_commands()"),
        ("build_function_def", "Image.run_function is not supported; use run_commands()"),
        ("volume_mounts", "volumes= of a build step are not supported; add_local_dir() brings files into an image"),
    ),
)

EXEC = Table(
    honoured=_words(
        "task_id exec_id command_args stdout_config stderr_config timeout_secs workdir secret_ids "
        "pty_info env secret_sources"
    ),
    harmless=_words("runtime_debug"),
    refused=(("container_id", "sidecars are not supported; create another sandbox"),),
)


SNAPSHOT = Table(
    honoured=_words("task_id path image_id snapshot_id ttl_seconds"),
    refused=(
        ("container_id", "sidecars are not supported; create another sandbox"),
        ("customer_supplied_encryption_key", "encryption keys are not supported; encrypt this machine's disk"),
    ),
)


def check(message: Message, table: Table, call: Call, *, name: str = "") -> None:
    """Refuse what is set and not honoured, and warn of what is ignored.

    Raises:
        InvalidError: with the field's name, and the remedy where there is one.
    """
    ignored, refused = dict(table.ignored), dict(table.refused)
    for path in _set(message, table):
        if path in table.honoured or path in table.harmless:
            continue
        if path in ignored:
            call.warn(ignored[path])
            continue
        raise InvalidError(
            refused.get(path)
            or f"{name}{path} is not known to OpenModal, whose door was made for an older client; leave it out, or "
            "update openmodal"
        )


def _set(message: Message, table: Table, before: str = "") -> Iterator[str]:
    """The fields that are set to something, with dots; what lies below one that is honoured as a
    whole is not looked at."""
    for unknown in UnknownFieldSet(message):
        yield f"{before}field {unknown.field_number}"
    for field, value in message.ListFields():
        path = f"{before}{field.name}"
        yield path
        is_message = field.type == FieldDescriptor.TYPE_MESSAGE and not field.is_repeated
        if is_message and any(name.startswith(f"{path}.") for name in table.honoured):
            yield from _set(value, table, f"{path}.")
