"""The Kubernetes engine's values: manifests, reports, settings. No cluster."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from openmodal import _ends, _wire
from openmodal._spec import Network, Referenced, Resources, SandboxSpec, Status
from openmodal.engines.kubernetes import pods, policies, posture, report
from openmodal.engines.kubernetes.admin import serving, setup
from openmodal.engines.kubernetes.images import buildkit
from openmodal.engines.kubernetes.settings import Settings, label, read
from openmodal.errors import InvalidError

ROOT = Referenced("k", reference="host/name@sha256:" + "0" * 64)
SETTINGS = Settings(owner="me", architecture="amd64")
NO_LIMITS = Resources()


def spec_of(resources: Resources = NO_LIMITS, settings: Settings = SETTINGS) -> dict[str, Any]:
    return pods.pod_spec(ROOT, resources, "openmodal-agent-x", settings)


# --------------------------------------------------------------------------------------------- pods


def test_a_pod_has_no_rights_over_its_node_or_its_cluster() -> None:
    spec = spec_of()
    container = spec["containers"][0]
    for open_door in ("hostNetwork", "hostPID", "hostIPC", "shareProcessNamespace", "enableServiceLinks"):
        assert spec[open_door] is False
    assert spec["automountServiceAccountToken"] is False
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"]["privileged"] is False
    assert container["securityContext"]["allowPrivilegeEscalation"] is False
    assert container["securityContext"]["capabilities"]["drop"] == ["ALL"]
    assert not {"SYS_ADMIN", "NET_ADMIN", "NET_RAW", "SYS_PTRACE"} & set(
        container["securityContext"]["capabilities"]["add"]
    )
    assert [list(volume) for volume in spec["volumes"]] == [["name", "configMap"]]


def test_no_credentials_of_a_cloud_are_in_a_pod_or_told_to_its_agent(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a client may have for the cloud; `env=` of the sandbox, which its user chose to give, is the control."""
    for name in ("GOOGLE_APPLICATION_CREDENTIALS", "CLOUDSDK_AUTH_ACCESS_TOKEN", "DOCKER_AUTH_CONFIG", "KUBECONFIG"):
        monkeypatch.setenv(name, "ya29.client")
    spec = SandboxSpec(app="a", env=(("GIVEN", "ya29.given"),))
    pod = {**pods.manifest("om-a-1", spec_of(), 60), "labels": pods.labels("a-1", spec, SETTINGS)}
    told = _wire.setup("token", spec, ROOT.user, 0)
    assert b"ya29.given" in told
    assert b"ya29.client" not in told + json.dumps(pod).encode()
    assert not {"serviceAccountName", "serviceAccount", "imagePullSecrets"} & set(pod["spec"])
    assert not {"env", "envFrom"} & set(pod["spec"]["containers"][0])
    accounts = [item for item in setup.manifests(SETTINGS) if item["kind"] == "ServiceAccount"]
    assert not accounts, "the namespace's own, which is bound to nothing of a cloud"


def test_requests_are_the_limits_unless_nodes_may_promise_more() -> None:
    resources = Resources(cpu=1.5, memory=300, disk=100)
    same = spec_of(resources)["containers"][0]["resources"]
    assert same["requests"] == same["limits"]
    assert same["limits"] == {"cpu": "1500m", "memory": "300Mi", "ephemeral-storage": "100Mi"}
    over = spec_of(resources, Settings(owner="me", architecture="amd64", overcommit=10))["containers"][0]["resources"]
    assert over["limits"] == same["limits"]
    assert over["requests"] == {"cpu": "150m", "memory": "30Mi", "ephemeral-storage": "10Mi"}


def test_an_agent_listens_for_the_network_only_with_the_setting_for_it_also_in_a_pool() -> None:
    plain, near = spec_of(), spec_of(settings=replace(SETTINGS, direct=True))
    for spec in (plain, pods.warm(plain)):
        assert "ports" not in spec["containers"][0]
        assert "--port" not in spec["containers"][0]["command"]
    for spec in (near, pods.warm(near)):
        assert spec["containers"][0]["ports"] == [{"name": "openmodal", "containerPort": 7333, "protocol": "TCP"}]
        assert " ".join(spec["containers"][0]["command"]).count("--port 7333 --setup-ms ") == 1
    assert pods.shape(plain) != pods.shape(near), "who takes a warm pod gets one of its kind"


@pytest.mark.parametrize(
    ("change", "address"),
    [
        ({}, ("10.0.0.7", 7333)),
        ({"phase": "Pending"}, None),
        ({"podIP": ""}, None),
        ({"deletionTimestamp": "2026-01-01T00:00:00Z"}, None),
        ({"ports": []}, None),
        ({"ports": [{"name": "other", "containerPort": 80}]}, None),
    ],
)
def test_a_pod_tells_where_its_agent_can_be_reached(change: dict[str, Any], address: tuple[str, int] | None) -> None:
    spec = spec_of(settings=replace(SETTINGS, direct=True))
    pod = pods.manifest("om-a-1", spec, 60)
    status = Status("a-1", "a", "", (), 1.0, 60.0, "image", "kubernetes")
    pod["metadata"] |= {"uid": "u", "annotations": pods.first_described(status, "token", fleeting=False)}
    pod["status"] = {"phase": "Running", "podIP": "10.0.0.7"}
    for name, value in change.items():
        place = pod["status"] if name in pod["status"] else pod["metadata"]
        (pod["spec"]["containers"][0] if name == "ports" else place)[name] = value
    found = pods.found(pod)
    assert found
    assert found.address == address


def test_gpus_are_asked_for_with_their_type() -> None:
    plain, any_type, chosen = (
        spec_of(Resources(gpus=count, gpu_type=kind)) for count, kind in ((0, ""), (1, ""), (2, "A100"))
    )
    assert "nvidia.com/gpu" not in plain["containers"][0]["resources"]["limits"]
    assert "tolerations" not in plain
    for spec, count in ((any_type, "1"), (chosen, "2")):
        resources = spec["containers"][0]["resources"]
        assert resources["limits"]["nvidia.com/gpu"] == resources["requests"]["nvidia.com/gpu"] == count
        assert spec["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists"}]
    assert any_type["nodeSelector"] == plain["nodeSelector"]
    assert chosen["nodeSelector"]["nvidia.com/gpu.product"] == "A100"
    on_gke = spec_of(Resources(gpus=1, gpu_type="nvidia-l4"), Settings(gpu_label="cloud.google.com/gke-accelerator"))
    assert on_gke["nodeSelector"]["cloud.google.com/gke-accelerator"] == "nvidia-l4"


def test_the_clusters_deadline_is_later_than_the_agents() -> None:
    assert pods.manifest("om-x-1", spec_of(), 77.5)["spec"]["activeDeadlineSeconds"] == 78


@pytest.mark.parametrize(
    ("id", "name"),
    [
        ("my-app-0123abcd", "om-my-app-0123abcd"),
        ("My_app.2-0123abcd", "om-my-app-2-0123abcd"),
        ("_-00000000", "om-app-00000000"),
    ],
)
def test_a_pods_name_is_one_that_kubernetes_takes(id: str, name: str) -> None:
    assert pods.name_of(id) == name


def test_a_long_apps_name_fits() -> None:
    assert len(pods.name_of("x" * 64 + "-0123abcd")) <= 63


def test_warm_pods_differ_from_others_in_nothing_but_their_waiting() -> None:
    plain, warm = spec_of(), pods.warm(spec_of())
    assert warm["restartPolicy"] == "Always"
    assert "--linger" in warm["containers"][0]["command"]
    without = {key: value for key, value in warm.items() if key not in ("restartPolicy", "containers")}
    assert without == {key: value for key, value in plain.items() if key != "containers"}


def test_a_shape_is_all_that_cannot_be_changed() -> None:
    assert pods.shape(spec_of()) == pods.shape(spec_of())
    assert (
        len({pods.shape(spec_of()), pods.shape(spec_of(Resources(cpu=2))), pods.shape(spec_of(Resources(memory=64)))})
        == 3
    )


def test_a_sandbox_is_found_again_in_its_pod() -> None:
    status = Status("a-0123abcd", "a", "n", (("t", "1"),), 5.0, 9.0, "k", "kubernetes", run="r")
    spec = SandboxSpec(app="a", network=Network(block=True))
    pod = {
        "metadata": {
            "name": "om-a-0123abcd",
            "uid": "u",
            "annotations": pods.first_described(status, "token", fleeting=True),
        },
        "status": {"phase": "Running"},
    }
    found = pods.found(pod)
    assert found
    assert (found.status, found.token, found.fleeting, found.ready, found.deleting) == (
        status,
        "token",
        True,
        True,
        False,
    )
    assert pods.labels(status.id, spec, SETTINGS)["openmodal.dev/network"] == "none"


@pytest.mark.parametrize("notes", [None, {}, {"openmodal.dev/sandbox": "{", "openmodal.dev/token": ""}])
def test_a_pod_that_says_nothing_we_know_is_no_sandbox(notes: dict[str, Any] | None) -> None:
    assert pods.found({"metadata": {"name": "x", "annotations": notes}}) is None


def state(**state: dict[str, Any]) -> dict[str, Any]:
    return {"status": {"phase": "Pending", "containerStatuses": [{"state": state}]}}


@pytest.mark.parametrize(
    ("pod", "kind"),
    [
        (state(waiting={"reason": "ContainerCreating"}), None),
        (state(running={}), None),
        (state(waiting={"reason": "ErrImagePull", "message": "not found"}), "image"),
        (state(waiting={"reason": "ImagePullBackOff"}), "image"),
        (state(waiting={"reason": "CreateContainerError", "message": "no such file"}), "pod"),
        ({"status": {"phase": "Failed", "reason": "Evicted", "message": "the node was low on disk"}}, "pod"),
    ],
)
def test_what_keeps_a_pod_from_running_is_known(pod: dict[str, Any], kind: str | None) -> None:
    trouble = pods.trouble(pod)
    assert (trouble and trouble[0]) == kind


def test_the_end_of_a_pod_without_a_report() -> None:
    failed = {"status": {"phase": "Failed", "reason": "Evicted", "message": "low on disk"}}
    end = pods.end(failed)
    assert end
    assert "Evicted: low on disk" in end.text
    late = pods.end({"status": {"phase": "Failed", "reason": "DeadlineExceeded"}})
    assert late
    assert (late.reason, late.returncode) == ("timeout", 124)
    killed = state(terminated={"reason": "OOMKilled", "exitCode": 137})
    out = pods.end({"status": {**killed["status"], "phase": "Failed"}})
    assert out
    assert out.reason == "oom"
    assert pods.end({"status": {"phase": "Running", "containerStatuses": [{"state": {"running": {}}}]}}) is None


# ------------------------------------------------------------------------------------------- report


def test_a_report_gives_outputs_and_end() -> None:
    log = (
        b"1 "
        + base64.b64encode(b"out\n\0\xff")
        + b"\n2 "
        + base64.b64encode(b"err")
        + b"\nend exited 3 0 5000000 9 3\n"
    )
    found = report.parse(log)
    assert found == report.Report(_ends.ended("exited", 3, 5.0, written=(9, 3)), b"out\n\0\xff", b"err")


@pytest.mark.parametrize(
    "log", [b"", b"1 b3V0\n", b"end exited\n", b"end exited x 0 1 0 0\n", b"end exited 3 0 5 0 0\nmore\n"]
)
def test_without_its_last_line_it_is_no_report(log: bytes) -> None:
    assert report.parse(log) is None


def test_words_of_the_agent_itself_are_errors() -> None:
    found = report.parse(b"openmodal: there is no user x\nend exited 126 0 1 0 0\n")
    assert found
    assert (found.end.returncode, found.stderr) == (126, b"openmodal: there is no user x\n")


def test_death_of_the_main_command_for_memory_is_told() -> None:
    found = report.parse(b"end exited 137 1 1 0 0\n")
    assert found
    assert found.end.reason == "oom"


# ----------------------------------------------------------------------------------------- settings


def test_settings_come_from_file_and_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENMODAL_HOME", str(tmp_path))
    monkeypatch.delenv("OPENMODAL_KUBERNETES_NAMESPACE", raising=False)
    text = '[kubernetes]\nnamespace = "file"\nnetwork_policy = true\nowner = "a b"\ninside = ["198.51.100.7"]\n'
    (tmp_path / "config.toml").write_text(text)
    assert (read().namespace, read().network_policy, read().owner) == ("file", True, "a-b")
    assert read().inside == ("198.51.100.7/32",)
    monkeypatch.setenv("OPENMODAL_KUBERNETES_INSIDE", "198.51.100.0/24, 2001:DB8::/32")
    assert read().inside == ("198.51.100.0/24", "2001:db8::/32")
    monkeypatch.setenv("OPENMODAL_KUBERNETES_NAMESPACE", "env")
    monkeypatch.setenv("OPENMODAL_KUBERNETES_OVERCOMMIT", "2.5")
    assert (read().namespace, read().overcommit) == ("env", 2.5)


@pytest.mark.parametrize(
    "line",
    [
        "no_such = 1",
        "overcommit = 0.5",
        'user_namespaces = "perhaps"',
        "architecture = 'z80'",
        "namespace = 3",
        'inside = ["10.0.0.1/8"]',
    ],
)
def test_wrong_settings_are_named(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENMODAL_HOME", str(tmp_path))
    monkeypatch.delenv("OPENMODAL_KUBERNETES_NAMESPACE", raising=False)
    monkeypatch.delenv("OPENMODAL_KUBERNETES_OVERCOMMIT", raising=False)
    (tmp_path / "config.toml").write_text(f"[kubernetes]\n{line}\n")
    with pytest.raises(InvalidError, match=line.partition(" ")[0]):
        read()


def test_labels_are_what_kubernetes_takes() -> None:
    assert label("-a b/c@d_") == "a-b-c-d"
    assert len(label("x" * 100)) == 63


# --------------------------------------------------------------------------------- what holds a pod

STATUS = "CapBnd:\t0000000000000001\nNoNewPrivs:\t1\nSeccomp:\t2\n"
IDS = {"/proc/1/status": STATUS, "/proc/1/uid_map": "         0          0 4294967295\n"}
V1 = {
    "/sys/fs/cgroup/memory/memory.limit_in_bytes": "268435456\n",
    "/sys/fs/cgroup/cpu/cpu.cfs_quota_us": "50000\n",
    "/sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
    "/sys/fs/cgroup/pids/pids.max": "max\n",
}
V1_WITHOUT = {
    "/sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
    "/sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
    "/sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
}
V2 = {
    "/sys/fs/cgroup/memory.max": "268435456\n",
    "/sys/fs/cgroup/cpu.max": "50000 100000\n",
    "/sys/fs/cgroup/pids.max": "512\n",
}
V2_WITHOUT = {"/sys/fs/cgroup/memory.max": "max\n", "/sys/fs/cgroup/cpu.max": "max 100000\n"}


@pytest.mark.parametrize(
    ("groups", "limits", "degraded"),
    [
        (V1, (256, 0.5, None), ()),
        (V2, (256, 0.5, 512), ()),
        (V1_WITHOUT, (None, None, None), ("limits",)),
        (V2_WITHOUT, (None, None, None), ("limits",)),
        ({}, (None, None, None), ("limits",)),
    ],
)
def test_limits_are_what_the_control_groups_say(
    groups: dict[str, str], limits: tuple[Any, ...], degraded: tuple[str, ...]
) -> None:
    pod = {"spec": spec_of(Resources(disk=300)), "metadata": {"labels": {"openmodal.dev/network": "none"}}}
    info = posture.info({**IDS, **groups}, pod, enforced=True)
    assert (info.memory, info.cpu, info.pids) == limits
    assert info.degraded == degraded
    assert (info.root, info.ids, info.capabilities, info.disk) == (0, 4294967295, ("chown",), 300)
    assert (info.network, posture.info(IDS, pod, enforced=False).network) == ("none", "outbound")


def test_a_sandbox_without_a_filter_is_said_to_lack_it() -> None:
    pod = {"spec": spec_of(), "metadata": {"labels": {}}}
    seen = {**IDS, **V2, "/proc/1/status": STATUS.replace("Seccomp:\t2", "Seccomp:\t0")}
    assert posture.info(seen, pod, enforced=False).degraded == ("seccomp",)


# -------------------------------------------------------------------------------------------- setup


def test_the_rights_are_no_more_than_the_engine_uses() -> None:
    role = next(item for item in setup.manifests(SETTINGS) if item["kind"] == "Role")
    resources = {resource for rule in role["rules"] for resource in rule["resources"]}
    used = {"pods", "pods/exec", "pods/log", "configmaps", "leases", "replicasets", "networkpolicies"}
    assert resources == {*used, "persistentvolumeclaims"}
    assert not any("*" in rule["verbs"] for rule in role["rules"])


def test_a_door_is_reached_by_a_port_forward_only_and_has_no_more_rights_than_its_users() -> None:
    near = Settings(owner="me", namespace="boxes", inside=("198.51.100.0/24",))
    found = {item["kind"]: item for item in serving.manifests(near, "host/openmodal:1", "host/images")}
    assert {item["metadata"]["namespace"] for item in found.values()} == {"boxes"}
    assert found["RoleBinding"]["roleRef"]["name"] == "openmodal", "the Role that every user has"
    template = found["Deployment"]["spec"]["template"]
    container = template["spec"]["containers"][0]
    assert "--host" not in container["args"], "it listens on loopback, which no other pod reaches"
    assert not policies.OURS.items() <= template["metadata"]["labels"].items(), (
        "the policies of sandboxes are not for it"
    )
    assert found["Service"]["spec"]["selector"].items() <= template["metadata"]["labels"].items()
    assert template["spec"]["securityContext"]["runAsNonRoot"]
    told = {each["name"]: each["value"] for each in container["env"]}
    assert told["OPENMODAL_REGISTRY"] == "host/images"
    assert told["OPENMODAL_KUBERNETES_BUILDER"] == "cluster", "nothing can be built in its pod"
    assert told["OPENMODAL_KUBERNETES_INSIDE"] == "198.51.100.0/24"
    assert "as-" not in json.dumps(found["Deployment"]), "the token is in the Secret alone"


def test_a_door_is_told_every_setting_that_a_pod_can_have(monkeypatch: pytest.MonkeyPatch) -> None:
    container = serving.manifests(SETTINGS, "x", "")[-2]["spec"]["template"]["spec"]["containers"][0]
    for each in container["env"]:
        monkeypatch.setenv(each["name"], each["value"])
    monkeypatch.setenv("OPENMODAL_HOME", "/nowhere")
    assert replace(read(), builder="") == replace(SETTINGS, builder="")


def test_builds_have_a_namespace_and_rights_of_their_own() -> None:
    """BuildKit's seccomp profile is none that "baseline" allows; so its pods are kept apart from sandboxes."""
    namespace, role, *rest = setup.builds(SETTINGS, ["user:a"])
    assert namespace["metadata"]["name"] == "openmodal-builds"
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "privileged"
    assert {item["metadata"]["namespace"] for item in (role, *rest)} == {"openmodal-builds"}
    rights = {resource: rule["verbs"] for rule in role["rules"] for resource in rule["resources"]}
    assert set(rights) == {"pods", "pods/exec", "configmaps", "jobs"}
    assert rights["jobs"] == ["create", "delete"]
    sandboxes = setup.manifests(SETTINGS)[0]
    assert sandboxes["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "baseline"


def test_a_build_has_no_more_rights_than_buildkit_needs() -> None:
    job = buildkit.job("om-build-1", Settings(owner="me", architecture="arm64", runtime_class="gvisor"), "map")
    pod = job["spec"]["template"]["spec"]
    client, daemon = pod["containers"]
    assert pod["automountServiceAccountToken"] is False
    assert "runtimeClassName" not in pod, "namespaces within namespaces are what gVisor does not have"
    assert client["securityContext"]["privileged"] is False
    assert daemon["securityContext"] == {
        "runAsUser": 1000,
        "runAsGroup": 1000,
        "seccompProfile": {"type": "Unconfined"},
    }
    assert not any("hostPath" in volume for volume in pod["volumes"])
    assert job["spec"]["backoffLimit"] == 0
    assert 0 < job["spec"]["ttlSecondsAfterFinished"] < 600, "the cluster removes what a client that died has left"


def test_policies_let_nothing_in_and_only_what_is_outside_out() -> None:
    deny, internet, direct = (item["spec"] for item in setup.manifests(SETTINGS) if item["kind"] == "NetworkPolicy")
    assert deny["policyTypes"] == ["Ingress", "Egress"]
    assert "ingress" not in deny
    assert "egress" not in deny
    assert (direct["policyTypes"], direct["ingress"]) == (["Ingress"], [])
    blocks = [place["ipBlock"] for place in internet["egress"][0]["to"]]
    assert {"169.254.0.0/16", "168.63.129.16/32", "192.0.0.0/24"} <= set(blocks[0]["except"])
    assert internet["podSelector"]["matchLabels"] == {"openmodal.dev/network": "internet"}


def test_agents_can_be_reached_only_with_the_setting_for_it_only_by_clients_and_nothing_more_goes_out() -> None:
    near = replace(SETTINGS, direct=True)
    added = [item for item in setup.manifests(near) if item not in setup.manifests(SETTINGS)]
    assert [item["metadata"]["name"] for item in added] == ["openmodal-direct"]
    spec = added[0]["spec"]
    assert (spec["policyTypes"], "egress" in spec) == (["Ingress"], False)
    assert spec["podSelector"]["matchLabels"] == policies.OURS
    (rule,) = spec["ingress"]
    assert rule["ports"] == [{"protocol": "TCP", "port": pods.PORT}]
    assert rule["from"] == [{"namespaceSelector": {}, "podSelector": {"matchLabels": {"openmodal.dev/client": "true"}}}]
    labels = pods.labels("a-1", SandboxSpec(app="a", run="b", tags=(("openmodal.dev/client", "true"),)), near)
    assert policies.CLIENT not in labels, "no sandbox is a client"
    assert setup.builds(near) == setup.builds(SETTINGS)
    assert buildkit.job("x", near, "map") == buildkit.job("x", SETTINGS, "map")


def test_a_list_of_networks_opens_no_more_than_was_meant() -> None:
    """0.0.0.0/0 is not the user's own network, and nothing is the metadata service."""
    never = ("127.0.0.0/8", "169.254.169.254/32", "168.63.129.16/32", "100.100.100.200/32", "fd00:ec2::254/128")
    given = (
        "0.0.0.0/0",
        "10.1.0.0/16",
        "10.0.0.0/8",
        "198.51.100.7/32",
        "100.100.0.0/16",
        "2001:db8::/32",
        "::/0",
        *never,
    )
    egress = listed(*given)["spec"]["egress"]
    assert egress[0]["ports"] == [{"protocol": "TCP"}]
    blocks = {place["ipBlock"]["cidr"]: set(place["ipBlock"]["except"]) for place in egress[0]["to"]}
    assert set(blocks) == set(given) - set(never)
    assert blocks["0.0.0.0/0"] == {text for text in policies.INSIDE if ":" not in text} | {"198.51.100.0/24"}
    assert blocks["::/0"] == {text for text in policies.INSIDE if ":" in text}
    assert blocks["100.100.0.0/16"] == {"100.100.100.200/32"}
    for network in ("10.0.0.0/8", "10.1.0.0/16", "198.51.100.7/32", "2001:db8::/32"):
        assert blocks[network] == set()


@pytest.mark.parametrize("cidrs", [(), ("127.0.0.1/32",)])
def test_a_list_without_a_network_allows_nothing_and_not_everything(cidrs: tuple[str, ...]) -> None:
    assert listed(*cidrs)["spec"]["egress"] == []


def listed(*cidrs: str) -> dict[str, Any]:
    pod = {"metadata": {"name": "om-a-1", "uid": "4711"}}
    made = policies.listed(pod, {"openmodal.dev/id": "om-a-1"}, cidrs, Settings(inside=("198.51.100.0/24",)))
    assert made["metadata"]["ownerReferences"][0]["uid"] == "4711"
    assert made["spec"]["podSelector"]["matchLabels"] == {"openmodal.dev/id": "om-a-1"}
    return made


@pytest.mark.parametrize(
    ("spec", "label"),
    [(Network(block=True), "none"), (Network(cidrs=()), "listed"), (Network(), "internet")],
)
def test_only_the_usual_sandbox_is_selected_by_the_policy_of_the_internet(spec: Network, label: str) -> None:
    found = pods.labels("a-1", SandboxSpec(app="a", network=spec), SETTINGS)
    assert found["openmodal.dev/network"] == label


def test_without_lightkube_the_remedy_is_told() -> None:
    """In a child interpreter, where the package cannot be imported."""
    program = (
        "import sys; sys.modules['lightkube'] = None\n"
        "from openmodal.engines import load\n"
        "try: load('kubernetes')\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("UnsupportedError ")
    assert "pip install '.[kubernetes]'" in done.stdout


def test_the_manifests_are_json() -> None:
    items = setup.manifests(SETTINGS, ["user:a", "group:b", "serviceaccount:c/d"], 10)
    assert [item["kind"] for item in items] == [
        "Namespace",
        "Role",
        "RoleBinding",
        "ResourceQuota",
        "NetworkPolicy",
        "NetworkPolicy",
        "NetworkPolicy",
    ]
    assert json.loads(json.dumps(items)) == items
