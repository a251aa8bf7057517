"""The program gcloud as tests have it: a fake, for there is no Google Cloud here. It keeps what was
made in a file, writes down how it was called, and answers and refuses in the words of the real one
(SDK 528, and its documentation).
"""

from __future__ import annotations

import json
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:  # it is started hundreds of times
    from typing import Any

HERE = os.path.dirname(os.path.abspath(__file__))

LOGGED_OUT = """\
ERROR: (gcloud.auth.print-access-token) You do not currently have an active account selected.
Please run:

  $ gcloud auth login

to obtain new credentials.
"""
EXPIRED = """\
ERROR: (gcloud.auth.print-access-token) There was a problem refreshing your current auth tokens: ('invalid_grant: Bad Request')
Please run:

  $ gcloud auth login

to obtain new credentials.
"""
DENIED = """\
ERROR: (gcloud.services.enable) PERMISSION_DENIED: Permission denied to enable service [container.googleapis.com]
Help Token: AUzTv
"""
OFF = """\
ERROR: (gcloud.container.clusters.list) ResponseError: code=403, message=Kubernetes Engine API has not been used in project 12345 before or
it is disabled. Enable it by visiting https://console.developers.google.com/apis/api/container.googleapis.com/overview then retry.
"""

AUTOPILOT = {
    "name": "openmodal",
    "status": "RUNNING",
    "autopilot": {"enabled": True},
    "networkConfig": {"datapathProvider": "ADVANCED_DATAPATH"},
    "workloadIdentityConfig": {"workloadPool": "proj.svc.id.goog"},
    "autoscaling": {"autoprovisioningNodePoolDefaults": {"serviceAccount": "default"}},
}
STANDARD = {
    "name": "openmodal",
    "status": "RUNNING",
    "networkConfig": {"datapathProvider": "ADVANCED_DATAPATH"},
    "workloadIdentityConfig": {"workloadPool": "proj.svc.id.goog"},
    "nodePools": [{"name": "default-pool", "config": {"serviceAccount": "default"}}],
}
GVISOR = {
    "name": "openmodal-gvisor",
    "config": {
        "sandboxConfig": {"type": "GVISOR"},
        "workloadMetadataConfig": {"mode": "GKE_METADATA"},
        "serviceAccount": "default",
    },
}

EMPTY: dict[str, Any] = {
    "config": {"core": {"account": "me@example.com", "project": "proj"}, "compute": {"zone": "europe-west4-b"}},
    "apis": ["compute.googleapis.com"],
    "accounts": [],
    "bindings": [],
    "repositories": [],
    "buckets": [],
    "cluster": None,
    "refuses": {},
    "kubeconfig": "",
}
"""A project in which nothing is."""


def main(arguments: list[str]) -> int:
    """One call."""
    with open(f"{HERE}/calls.jsonl", "a") as log:
        log.write(json.dumps([arguments, os.environ.get("CLOUDSDK_CORE_DISABLE_PROMPTS")]) + "\n")
    with open(f"{HERE}/state.json") as file:
        state = json.load(file)
    words = " ".join(word for word in arguments if not word.startswith("-"))
    flags = dict(word[2:].split("=", 1) for word in arguments if word.startswith("--") and "=" in word)
    for prefix, text in state["refuses"].items():
        if words.startswith(prefix):
            sys.stderr.write(text)
            return 1
    sys.stdout.write(answer(state, words, flags))
    with open(f"{HERE}/state.json", "w") as file:
        json.dump(state, file)
    return 0


def answer(state: dict[str, Any], words: str, flags: dict[str, str]) -> str:
    """What it prints; `state` is changed."""
    match words.split():
        case ["config", "list"]:
            return json.dumps(state["config"])
        case ["auth", "print-access-token"]:
            return "ya29.secret\n"
        case ["services", "list"]:
            return lines(state["apis"])
        case ["services", "enable", *names]:
            state["apis"] += names
        case ["iam", "service-accounts", "list"]:
            return lines(state["accounts"])
        case ["iam", "service-accounts", "create", name]:
            state["accounts"].append(f"{name}@{flags['project']}.iam.gserviceaccount.com")
        case [*_, "get-iam-policy", subject]:
            return lines(text for name, text in state["bindings"] if name == subject)
        case [*_, "add-iam-policy-binding", subject]:
            state["bindings"].append([subject, f"{flags['member']}\t{flags['role']}"])
        case ["artifacts", "repositories", "list"]:
            return lines(state["repositories"])
        case ["artifacts", "repositories", "create", name]:
            state["repositories"].append(name)
        case ["storage", "buckets", "list"]:
            return lines(state["buckets"])
        case ["storage", "buckets", "create", url]:
            state["buckets"].append(url.removeprefix("gs://"))
        case ["projects", "describe", _]:
            return "12345\n"
        case _:
            return of_cluster(state, words.split(), flags)
    return ""


def of_cluster(state: dict[str, Any], words: list[str], flags: dict[str, str]) -> str:
    """The same, of clusters and credentials."""
    match words:
        case ["container", "clusters", "list"]:
            return lines([state["cluster"]["name"]] if state["cluster"] else [])
        case ["container", "clusters", "describe", _]:
            return json.dumps(state["cluster"])
        case ["container", "clusters", "create-auto", name]:
            defaults = {"autoprovisioningNodePoolDefaults": {"serviceAccount": flags["service-account"]}}
            state["cluster"] = {**AUTOPILOT, "name": name, "autoscaling": defaults}
        case ["container", "clusters", "create", name]:
            state["cluster"] = {**STANDARD, "name": name}
        case ["container", "node-pools", "create", _]:
            config = {**GVISOR["config"], "serviceAccount": flags["service-account"]}  # type: ignore[dict-item]
            state["cluster"]["nodePools"].append({**GVISOR, "config": config})
        case ["container", "clusters", "get-credentials", _]:
            name = f"gke_{flags['project']}_{flags['location']}_{words[-1]}"
            with open(os.environ["KUBECONFIG"], "w") as file:
                file.write(state["kubeconfig"].replace("NAME", name))
        case ["auth", "configure-docker", host]:
            return f"Adding credentials for: {host}\n"
        case _:
            sys.exit(f"the fake gcloud does not know: {words}")
    return ""


def lines(items: Any) -> str:
    return "".join(f"{item}\n" for item in items)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
