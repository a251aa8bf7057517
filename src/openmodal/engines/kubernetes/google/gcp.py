"""What `openmodal setup gcp` has gcloud do: a cluster, a registry, and rights that are no more than
they need. Values; nothing here runs.

Nodes get an account of their own, which may write logs and pull our images, so that there is little
to win where a sandbox reaches its node's credentials; Workload Identity, which every cluster that
we make or accept has, keeps them from pods in the first place.
"""

from __future__ import annotations

from typing import Any

import msgspec

from openmodal.errors import EngineError

Argv = tuple[str, ...]
"""Arguments of gcloud."""

_APIS = ("container.googleapis.com", "artifactregistry.googleapis.com", "iam.googleapis.com")
_BUILD_APIS = ("cloudbuild.googleapis.com", "storage.googleapis.com")
_NODE_ROLE = "roles/container.defaultNodeServiceAccount"
_READER = "roles/artifactregistry.reader"
_POLICY = ("--flatten=bindings[].members", "--format=value(bindings.members,bindings.role)")
_SYSTEM_NODES = ("--machine-type=e2-standard-2", "--num-nodes=1")  # in each zone of the region
_SANDBOX_NODES = ("--machine-type=e2-standard-4", "--enable-autoscaling", "--total-min-nodes=0", "--total-max-nodes=10")


DEFAULT = "default"
"""How a cluster calls Compute Engine's default account, whose name has the project's number in it."""


class Wish(msgspec.Struct, frozen=True):
    """What there shall be. `standard`: a cluster whose nodes you see, instead of an Autopilot one.
    `cloud_build`: images are built by Cloud Build.
    """

    project: str
    region: str
    cluster: str = "openmodal"
    repository: str = "openmodal"
    standard: bool = False
    cloud_build: bool = False

    @property
    def registry(self) -> str:
        """Where images are pushed, as "host/path"."""
        return f"{self.host}/{self.project}/{self.repository}"

    @property
    def host(self) -> str:
        """The registry's host."""
        return f"{self.region}-docker.pkg.dev"

    @property
    def context(self) -> str:
        """What gcloud calls the cluster in a kubeconfig."""
        return f"gke_{self.project}_{self.region}_{self.cluster}"

    @property
    def nodes(self) -> str:
        """The account of the nodes that we make."""
        return f"openmodal-nodes@{self.project}.iam.gserviceaccount.com"

    @property
    def builds(self) -> str:
        """The account that builds run as."""
        return f"openmodal-builds@{self.project}.iam.gserviceaccount.com"

    @property
    def bucket(self) -> str:
        """Where builds read what they are made of, and write their logs."""
        return f"{self.project}-openmodal-builds"

    @property
    def place(self) -> Argv:
        """Flags for what is in a region of the project."""
        return (f"--project={self.project}", f"--location={self.region}")


class Step(msgspec.Struct, frozen=True):
    """One change: `do` is needed unless `look` prints all the lines `wants`. Without `look` it is
    done each time, and changes nothing then.

    `what` completes the sentence "… may not …".
    """

    what: str
    do: Argv
    look: Argv = ()
    wants: tuple[str, ...] = ()


class Cluster(msgspec.Struct, frozen=True):
    """What matters of a cluster. `account`: of the nodes that run sandboxes."""

    enforces_policies: bool
    gvisor: bool
    account: str


def foundation(wish: Wish) -> tuple[Step, ...]:
    """The steps up to a cluster that is there."""
    project = f"--project={wish.project}"
    apis = (*_APIS, *(_BUILD_APIS if wish.cloud_build else ()))
    return (
        Step(
            "enable APIs",
            ("services", "enable", *apis, project),
            ("services", "list", "--enabled", project, "--format=value(config.name)"),
            apis,
        ),
        _account(wish, wish.nodes, "nodes"),
        _grant("give nodes their role", ("projects",), (wish.project,), wish.nodes, _NODE_ROLE, "--condition=None"),
        Step(
            "make a repository for images",
            ("artifacts", "repositories", "create", wish.repository, "--repository-format=docker", *wish.place),
            ("artifacts", "repositories", "list", *wish.place, "--format=value(name.basename())"),
            (wish.repository,),
        ),
        *(_cloud_build(wish) if wish.cloud_build else ()),
        _cluster(wish),
    )


def _account(wish: Wish, account: str, whose: str) -> Step:
    project = f"--project={wish.project}"
    name, _, _ = account.partition("@")
    return Step(
        f"make an account for {whose}",
        ("iam", "service-accounts", "create", name, project, f"--display-name=OpenModal: {whose}"),
        ("iam", "service-accounts", "list", project, "--format=value(email)"),
        (account,),
    )


def _cloud_build(wish: Wish) -> tuple[Step, ...]:
    """What builds need: an account that may push to our repository and use a bucket of ours, and nothing else."""
    url = f"gs://{wish.bucket}"
    writer = "roles/artifactregistry.writer"
    options = ("--uniform-bucket-level-access", "--public-access-prevention")
    repository = (wish.repository, *wish.place)
    return (
        _account(wish, wish.builds, "builds"),
        _grant("let builds push images", ("artifacts", "repositories"), repository, wish.builds, writer),
        Step(
            "make a bucket for builds",
            ("storage", "buckets", "create", url, *wish.place, *options),
            ("storage", "buckets", "list", f"--project={wish.project}", "--format=value(name)"),
            (wish.bucket,),
        ),
        _grant("let builds use their bucket", ("storage", "buckets"), (url,), wish.builds, "roles/storage.objectAdmin"),
    )


def _cluster(wish: Wish) -> Step:
    options = (*wish.place, "--release-channel=regular", f"--service-account={wish.nodes}")
    # Autopilot has both by itself: policies that are enforced, and Workload Identity.
    standard = ("--enable-ip-alias", "--enable-dataplane-v2", f"--workload-pool={wish.project}.svc.id.goog")
    create = ("create", wish.cluster, *options, *standard, *_SYSTEM_NODES)
    return Step(
        "make a cluster",
        ("container", "clusters", *(create if wish.standard else ("create-auto", wish.cluster, *options))),
        ("container", "clusters", "list", *wish.place, "--format=value(name)"),
        (wish.cluster,),
    )


def describe(wish: Wish) -> Argv:
    """What tells of the cluster, in JSON."""
    return ("container", "clusters", "describe", wish.cluster, *wish.place, "--format=json")


def number(wish: Wish) -> Argv:
    """What tells the project's number."""
    return ("projects", "describe", wish.project, "--format=value(projectNumber)")


def expected(wish: Wish) -> Cluster:
    """The cluster that `foundation` makes."""
    return Cluster(enforces_policies=True, gvisor=not wish.standard, account=wish.nodes)


def found(wish: Wish, told: dict[str, Any]) -> Cluster:
    """The cluster that is there.

    Raises:
        EngineError: sandboxes must not run there.
    """
    autopilot = bool(told.get("autopilot", {}).get("enabled"))
    pool = _gvisor_pool(told)
    defaults = told.get("autoscaling", {}).get("autoprovisioningNodePoolDefaults", {})
    nodes = defaults if autopilot else pool
    cluster = Cluster(
        enforces_policies=autopilot or _enforces_policies(told),
        gvisor=autopilot or bool(pool),
        account=str(nodes.get("serviceAccount") or DEFAULT) if autopilot or pool else wish.nodes,
    )
    if not autopilot and not _hides_credentials(told, pool):
        raise EngineError(_SHOWS_CREDENTIALS.format(wish=wish))
    return cluster


def _gvisor_pool(told: dict[str, Any]) -> dict[str, Any]:
    """The configuration of the first node pool with gVisor; empty if there is none."""
    pools: list[dict[str, Any]] = [pool.get("config", {}) for pool in told.get("nodePools", ())]
    return next((pool for pool in pools if "gvisor" in str(pool.get("sandboxConfig", "")).lower()), {})


def _enforces_policies(told: dict[str, Any]) -> bool:
    """Whether NetworkPolicies hold: by Dataplane V2, or by Calico."""
    dataplane = told.get("networkConfig", {}).get("datapathProvider")
    return dataplane == "ADVANCED_DATAPATH" or bool(told.get("networkPolicy", {}).get("enabled"))


def _hides_credentials(told: dict[str, Any], pool: dict[str, Any]) -> bool:
    """Whether Workload Identity stands between pods and their node's credentials; nodes that we make have it if the cluster has."""
    ours = not pool or pool.get("workloadMetadataConfig", {}).get("mode") == "GKE_METADATA"
    return ours and bool(told.get("workloadIdentityConfig", {}).get("workloadPool"))


_SHOWS_CREDENTIALS = (
    "what runs in a pod of the cluster {wish.cluster} can get the credentials of its node, because the cluster or its node pool for gVisor "
    "has no Workload Identity; add it (docs/gcp.md tells how), or name another cluster with --cluster"
)


def finish(wish: Wish, cluster: Cluster) -> tuple[Step, ...]:
    """The steps after it: rights to pull, nodes with gVisor, and this machine's credentials."""
    subject = ("artifacts", "repositories")
    reader = _grant("let nodes pull images", subject, (wish.repository, *wish.place), cluster.account, _READER)
    return (
        reader,
        *(() if cluster.gvisor else (_gvisor(wish),)),
        Step("get credentials", ("container", "clusters", "get-credentials", wish.cluster, *wish.place)),
        Step("log in to the registry", ("auth", "configure-docker", wish.host)),
    )


def _gvisor(wish: Wish) -> Step:
    kind = ("--sandbox=type=gvisor", "--image-type=cos_containerd", "--workload-metadata=GKE_METADATA")
    options = (*wish.place, f"--cluster={wish.cluster}", f"--service-account={wish.nodes}")
    return Step(
        "make nodes with gVisor",
        ("container", "node-pools", "create", "openmodal-gvisor", *options, *kind, *_SANDBOX_NODES),
    )


def _grant(what: str, kind: Argv, subject: Argv, account: str, role: str, *more: str) -> Step:
    member = f"serviceAccount:{account}"
    return Step(
        what,
        (*kind, "add-iam-policy-binding", *subject, f"--member={member}", f"--role={role}", *more),
        (*kind, "get-iam-policy", *subject, *_POLICY),
        (f"{member}\t{role}",),
    )


def configuration(wish: Wish, cluster: Cluster) -> dict[str, Any]:
    """What the configuration file has to say."""
    kubernetes = {
        "context": wish.context,
        "network_policy": cluster.enforces_policies,
        "runtime_class": "gvisor",
        **({"builder": "cloudbuild"} if wish.cloud_build else {}),
    }
    return {"engine": "kubernetes", "registry": wish.registry, "kubernetes": kubernetes}
