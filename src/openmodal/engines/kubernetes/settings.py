"""What the user says of the cluster: the table [kubernetes] of the configuration, or OPENMODAL_KUBERNETES_<KEY>."""

from __future__ import annotations

import getpass
import ipaddress
import re
from typing import Any, Literal

import msgspec

from openmodal import _config
from openmodal.build.names import architecture
from openmodal.errors import InvalidError


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where and how pods are made.

    Attributes:
        context: the context of the kubeconfig; "": its current one.
        namespace: where the pods live.
        owner: whose sandboxes `list` tells; "": this user's name.
        overcommit: how many times more than it has a node may promise: what a pod reserves is its
            limits divided by this.
        architecture: the nodes' CPU, "amd64" or "arm64"; "": this machine's.
        network_policy: whether the cluster enforces NetworkPolicies; see docs/kubernetes.md for how
            to find out.
        inside: networks of yours whose addresses are public, such as the nodes': only who has a
            list with one of them reaches it.
        user_namespaces: whether root in a sandbox is nobody on the node: Kubernetes 1.33 with
            containerd 2 or CRI-O can do it.
        direct: whether this client runs in the cluster, or reaches pods' addresses, and connects to
            them without the API server.
        runtime_class: of every pod, such as "gvisor"; "": the cluster's default.
        builder: where images are built: "local", "cluster", "cloudbuild"; "": here if this machine
            can, else in the cluster.
        build_namespace: where the pods of builds live, apart from sandboxes; "": `namespace` with
            "-builds" behind it.
        build_image: the image with BuildKit for them.
        gpu_label: the label by which nodes tell the type of their GPUs, for `gpu="TYPE"`.
        probe_image: of the pods that find out whether NetworkPolicies are enforced; none of its
            programs run.
        volume_class: the StorageClass of volumes; "": the cluster's default.
        volume_size: of each, in MiB.
        volume_access: "ReadWriteMany" where the class can have a volume on many nodes at once.
        patience: seconds that a pod may wait for a node, its image and its start.
    """

    context: str = ""
    namespace: str = "openmodal"
    owner: str = ""
    overcommit: float = 1.0
    architecture: Literal["", "amd64", "arm64"] = ""
    network_policy: bool = False
    inside: tuple[str, ...] = ()
    user_namespaces: bool = False
    direct: bool = False
    runtime_class: str = ""
    builder: Literal["", "local", "cluster", "cloudbuild"] = ""
    build_namespace: str = ""
    build_image: str = "docker.io/moby/buildkit:rootless"
    gpu_label: str = "nvidia.com/gpu.product"
    probe_image: str = "registry.k8s.io/pause:3.9"
    patience: float = 600.0
    volume_class: str = ""
    volume_size: int = 10240
    volume_access: Literal["ReadWriteOnce", "ReadWriteMany"] = "ReadWriteOnce"

    @property
    def builds(self) -> str:
        """The namespace of builds."""
        return self.build_namespace or f"{self.namespace}-builds"

    @property
    def cpu(self) -> str:
        """The nodes' CPU as Kubernetes calls it."""
        return self.architecture or architecture()


def read() -> Settings:
    """The settings as they are now.

    Raises:
        InvalidError: one of them is unknown or has a wrong value.
    """
    return checked(_config.table("kubernetes", Settings.__struct_fields__))


def checked(values: dict[str, Any]) -> Settings:
    """The settings of a table `[kubernetes]`.

    Raises:
        InvalidError: one of them is unknown or has a wrong value.
    """
    if isinstance(inside := values.get("inside"), str):  # the environment knows no lists
        values["inside"] = inside.replace(",", " ").split()
    try:
        settings = msgspec.convert(values, Settings, strict=False)
    except msgspec.ValidationError as error:
        raise InvalidError(
            f"the configuration of Kubernetes is wrong: {error}; mend [kubernetes] in {_config.config_file()}, "
            "or OPENMODAL_KUBERNETES_…"
        ) from error
    for name, value, least, most in (
        ("overcommit", settings.overcommit, 1, 1000),
        ("patience", settings.patience, 1, 86400),
        ("volume_size", settings.volume_size, 1, 1 << 24),
    ):
        if not least <= value <= most:
            raise InvalidError(f"kubernetes.{name} is {value}; it is from {least} to {most}")
    owner = label(settings.owner or getpass.getuser())
    return msgspec.structs.replace(settings, owner=owner, inside=tuple(map(_network, settings.inside)))


def _network(text: str) -> str:
    try:
        return str(ipaddress.ip_network(text))
    except ValueError as error:
        raise InvalidError(
            f"kubernetes.inside has {text!r}, which is no network; write one like '198.51.100.0/24' or '2001:db8::/32'"
        ) from error


def label(text: str) -> str:
    """Text as a label's value: at most 63 of A-Za-z0-9._-, no punctuation at its ends."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", text)[:63].strip("._-")
