"""`openmodal setup gcp` from end to end, against a gcloud that answers what the real one would, and an API server that writes down."""

from __future__ import annotations

import io
import json
import os
import pty
import shlex
import shutil
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from openmodal.cli._root import run
from openmodal.engines.kubernetes.google import gcp
from tests.cli import gcloud as fake
from tests.cli.conftest import COMMAND

WISH = gcp.Wish("proj", "europe-west4")
NODES = "serviceAccount:openmodal-nodes@proj.iam.gserviceaccount.com"
KUBECONFIG = """\
{{"apiVersion": "v1", "kind": "Config", "current-context": "NAME",
"clusters": [{{"name": "NAME", "cluster": {{"server": "{server}"}}}}],
"users": [{{"name": "NAME", "user": {{"token": "none"}}}}],
"contexts": [{{"name": "NAME", "context": {{"cluster": "NAME", "user": "NAME"}}}}]}}
"""


class Google:
    """A folder with a gcloud of its own on PATH, and what it was asked."""

    def __init__(self, folder: Path, server: str) -> None:
        self.folder = folder
        self.home = folder / "home"
        self.path = f"{folder}:/usr/bin:/bin"
        self.home.mkdir()
        self._install("gcloud")
        self._install("gke-gcloud-auth-plugin")
        self.have(kubeconfig=KUBECONFIG.format(server=server))

    def setup(self, *arguments: str) -> str:
        """Run it in this process, and return what it prints."""
        code, out, err = self._run(*arguments)
        assert code == 0, err
        return out

    def error(self, *arguments: str) -> str:
        """Run it and return its error, which has to be the last line of what it says."""
        code, _, err = self._run(*arguments)
        last = err.splitlines()[-1]
        assert code == 1 and last.startswith("Error: "), err
        return last

    def _run(self, *arguments: str) -> tuple[int, str, str]:
        out, err = io.StringIO(), io.StringIO()
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
            for name, value in self.env.items():
                patch.setenv(name, value)
            patch.delenv("OPENMODAL_KUBERNETES_NAMESPACE", raising=False)
            patch.setattr("sys.stdin", io.StringIO())
            code = run(["setup", "gcp", *arguments])
        return code, out.getvalue(), err.getvalue()

    def _install(self, name: str) -> None:
        program = self.folder / name
        program.write_text(f"#!{sys.executable} -IS\n" + Path(fake.__file__).read_text())
        program.chmod(0o755)

    def have(self, **what: Any) -> None:
        (self.folder / "state.json").write_text(json.dumps({**fake.EMPTY, **self.state(), **what}))

    def state(self) -> dict[str, Any]:
        file = self.folder / "state.json"
        return dict(json.loads(file.read_text())) if file.exists() else {}

    @property
    def env(self) -> dict[str, str]:
        return {
            "PATH": self.path,
            "OPENMODAL_HOME": str(self.home),
            "KUBECONFIG": str(self.folder / "kubeconfig"),
        }

    def calls(self) -> list[list[str]]:
        log = self.folder / "calls.jsonl"
        return [json.loads(line)[0] for line in log.read_text().splitlines()] if log.exists() else []

    def changes(self) -> list[str]:
        """What it was asked to change, without credentials, which are fetched each time."""
        words = ("enable", "create", "create-auto", "add-iam-policy-binding")
        return [" ".join(call[:4]) for call in self.calls() if set(words) & set(call)]

    def forget(self) -> None:
        (self.folder / "calls.jsonl").unlink(missing_ok=True)

    @property
    def config(self) -> Path:
        return self.home / "config.toml"


class Recorder(BaseHTTPRequestHandler):
    """An API server that has everything that is made."""

    made: list[tuple[str, str]]

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        known = (self.path, body["metadata"]["name"]) in self.made
        self.made.append((self.path, body["metadata"]["name"]))
        self._answer(409 if known else 201, {"message": "it is there", "reason": "AlreadyExists"} if known else body)

    def do_PATCH(self) -> None:
        self._answer(200, json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def _answer(self, status: int, body: Any) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *unused: Any) -> None:
        """Not on stderr."""


@pytest.fixture
def made() -> list[tuple[str, str]]:
    return []


@pytest.fixture
def google(tmp_path: Path, made: list[tuple[str, str]]) -> Iterator[Google]:
    with ThreadingHTTPServer(("127.0.0.1", 0), type("Recorded", (Recorder,), {"made": made})) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield Google(tmp_path, f"http://127.0.0.1:{server.server_port}")
        finally:
            server.shutdown()
            thread.join()


def test_an_empty_project_becomes_a_configured_cluster(google: Google, made: list[tuple[str, str]]) -> None:
    google.config.write_text('# mine\nbase = "packages"  # keep\nengine = "docker"\n\n[kubernetes]\npatience = 60\n')
    out = google.setup()
    assert google.changes() == [
        "services enable container.googleapis.com artifactregistry.googleapis.com",
        "iam service-accounts create openmodal-nodes",
        "projects add-iam-policy-binding proj " + f"--member={NODES}",
        "artifacts repositories create openmodal",
        "container clusters create-auto openmodal",
        "artifacts repositories add-iam-policy-binding openmodal",
    ]
    text = google.config.read_text()
    assert text.startswith('# mine\nbase = "packages"  # keep\n')
    assert tomllib.loads(text) == {
        "base": "packages",
        "engine": "kubernetes",
        "registry": "europe-west4-docker.pkg.dev/proj/openmodal",
        "kubernetes": {
            "patience": 60,
            "context": "gke_proj_europe-west4_openmodal",
            "network_policy": True,
            "runtime_class": "gvisor",
            "namespace": "openmodal",
            "architecture": "amd64",
        },
    }
    assert ("/api/v1/namespaces", "openmodal") in made
    assert ("/apis/networking.k8s.io/v1/namespaces/openmodal/networkpolicies", "openmodal-deny") in made
    assert str(google.config) in out.splitlines()[-1]


def test_nothing_is_done_twice(google: Google) -> None:
    google.setup()
    before = google.config.read_text()
    google.forget()
    out = google.setup()
    assert google.changes() == []
    assert google.calls(), "it looked"
    assert google.config.read_text() == before
    assert "Namespace openmodal: up to date" in out


def test_a_standard_cluster_gets_nodes_with_gvisor_and_policies_that_hold(google: Google) -> None:
    google.setup("--standard", "--cluster", "big")
    create = next(call for call in google.calls() if call[:3] == ["container", "clusters", "create"])
    assert {"big", "--enable-dataplane-v2", "--workload-pool=proj.svc.id.goog"} <= set(create)
    pool = next(call for call in google.calls() if call[:3] == ["container", "node-pools", "create"])
    assert {"--cluster=big", "--sandbox=type=gvisor", "--workload-metadata=GKE_METADATA"} <= set(pool)
    google.forget()
    google.setup("--standard", "--cluster", "big")
    assert google.changes() == []


def test_with_cloud_build_builds_have_an_account_and_a_bucket_of_their_own(google: Google) -> None:
    google.have(cluster=fake.AUTOPILOT, accounts=[WISH.nodes], repositories=["openmodal"])
    google.setup("--cloud-build")
    assert google.state()["buckets"] == ["proj-openmodal-builds"]
    builds = "serviceAccount:openmodal-builds@proj.iam.gserviceaccount.com"
    granted = [[where, text.split("\t")[1]] for where, text in google.state()["bindings"] if text.startswith(builds)]
    assert granted == [
        ["openmodal", "roles/artifactregistry.writer"],
        ["gs://proj-openmodal-builds", "roles/storage.objectAdmin"],
    ], "nothing of the whole project"
    assert tomllib.loads(google.config.read_text())["kubernetes"]["builder"] == "cloudbuild"


def test_a_cluster_that_is_there_is_used_and_its_nodes_may_pull(google: Google) -> None:
    google.have(cluster=fake.AUTOPILOT)
    google.setup()
    assert not any("clusters create" in change for change in google.changes())
    grant = next(call for call in google.calls() if call[:3] == ["artifacts", "repositories", "add-iam-policy-binding"])
    assert "--member=serviceAccount:12345-compute@developer.gserviceaccount.com" in grant


def test_a_cluster_without_policies_is_used_but_not_believed(google: Google) -> None:
    google.have(cluster={**fake.STANDARD, "networkConfig": {}, "nodePools": [fake.GVISOR]})
    google.setup()
    assert tomllib.loads(google.config.read_text())["kubernetes"]["network_policy"] is False


@pytest.mark.parametrize(
    "cluster",
    [
        {**fake.STANDARD, "workloadIdentityConfig": {}},
        {**fake.STANDARD, "nodePools": [{"config": {"sandboxConfig": {"type": "GVISOR"}}}]},
    ],
)
def test_a_cluster_whose_pods_could_get_their_nodes_credentials_is_refused(
    google: Google, cluster: dict[str, Any]
) -> None:
    google.have(cluster=cluster)
    assert "Workload Identity" in google.error()
    assert not google.config.exists()


def test_a_dry_run_shows_all_and_changes_nothing(google: Google, made: list[tuple[str, str]]) -> None:
    google.have(repositories=["openmodal"], refuses={"container clusters list": fake.OFF})
    before = google.state()
    out = google.setup("--dry-run", "--standard", "--region", "us-east1")
    assert (google.state(), google.config.exists(), made) == (before, False, [])
    shown = out.splitlines()
    wish = gcp.Wish("proj", "us-east1", standard=True)
    steps = (*gcp.foundation(wish), *gcp.finish(wish, gcp.expected(wish)))
    for step in steps:
        assert any(line.endswith(shlex.join(("gcloud", *step.do))) for line in shown), step
    done = [line for line in shown if line.startswith("# done already")]
    assert len(done) == 1 and done[0].startswith("# done already: gcloud artifacts repositories create openmodal")
    assert "openmodal setup kubernetes" in shown
    assert 'registry = "us-east1-docker.pkg.dev/proj/openmodal"' in shown


@pytest.mark.parametrize(
    ("state", "told"),
    [
        ({"config": {}}, "run `gcloud auth login`"),
        ({"refuses": {"auth print-access-token": fake.EXPIRED}}, "run `gcloud auth login`"),
        ({"config": {"core": {"account": "me"}, "compute": {"region": "r"}}}, "no project is chosen; give --project"),
        ({"config": {"core": {"account": "me", "project": "p"}}}, "no region is chosen; give --region"),
    ],
)
def test_what_is_missing_is_told_before_anything_is_done(google: Google, state: dict[str, Any], told: str) -> None:
    google.have(**state)
    assert told in google.error()
    assert google.changes() == []


def test_an_api_that_may_not_be_enabled_ends_it_with_who_can(google: Google) -> None:
    google.have(refuses={"services enable": fake.DENIED})
    error = google.error()
    assert "you may not enable APIs in this project (PERMISSION_DENIED: Permission denied to enable service" in error
    assert "ask its owner" in error
    assert len(google.changes()) == 1, "nothing is tried after it"
    assert not google.config.exists()


def test_a_failure_in_the_middle_is_gone_on_from(google: Google) -> None:
    google.have(refuses={"container clusters create-auto": "ERROR: (gcloud.x) code=429, message=out of quota\n"})
    assert "gcloud could not make a cluster: code=429" in google.error()
    google.have(refuses={})
    google.forget()
    google.setup()
    assert [change.split()[2] for change in google.changes()] == ["create-auto", "add-iam-policy-binding"]


@pytest.mark.parametrize("program", ["gcloud", "gke-gcloud-auth-plugin"])
def test_a_missing_program_is_named_with_how_to_get_it(google: Google, program: str) -> None:
    (google.folder / program).unlink()
    google.path = str(google.folder)
    assert f"the program {program} is not on PATH; " in google.error()


def test_gcloud_never_waits_for_an_answer(google: Google) -> None:
    google.setup("--dry-run")
    log = (google.folder / "calls.jsonl").read_text().splitlines()
    assert {json.loads(line)[1] for line in log} == {"1"}


def test_a_broken_configuration_is_not_written_over(google: Google) -> None:
    google.config.write_text('kubernetes = "all of it"\n')
    assert "must be a table" in google.error()
    assert google.config.read_text() == 'kubernetes = "all of it"\n'


def test_at_a_terminal_it_asks(google: Google) -> None:
    google.have(config={"core": {"account": "me@example.com"}})
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [*COMMAND, "setup", "gcp", "--dry-run"],
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=theirs,
        env=os.environ | google.env,
        text=True,
    ) as process:
        os.close(theirs)
        os.write(ours, b"asked-project\nasia-east1\n")
        out, _ = process.communicate(timeout=600)
    os.close(ours)
    assert process.returncode == 0
    assert "--project=asked-project --location=asia-east1" in out


@pytest.mark.feature("gcloud")
def test_the_real_gcloud_knows_every_command_that_we_give_it(tmp_path: Path) -> None:
    """It reads its arguments before it finds that nobody is logged in (exit code 2, then 1), so this needs no cloud."""
    program = shutil.which("gcloud")
    if not program:
        pytest.skip("needs gcloud")
    wishes = (WISH, gcp.Wish("proj", "europe-west4", standard=True, cloud_build=True))
    steps = {step for wish in wishes for step in (*gcp.foundation(wish), *gcp.finish(wish, gcp.expected(wish)))}
    asked = {argv for step in steps for argv in (step.do, step.look) if argv} | {gcp.describe(WISH), gcp.number(WISH)}
    commands = [*asked, (*gcp.describe(WISH), "--no-such-flag")]
    sdk = Path(program).resolve().parents[1]
    python = sdk / "platform/bundledpythonunix/bin/python3"
    done = subprocess.run(
        [python if python.exists() else sys.executable, "-c", EACH, sdk],
        env=os.environ
        | {"CLOUDSDK_CONFIG": str(tmp_path), "CLOUDSDK_CORE_DISABLE_PROMPTS": "1", "HOME": str(tmp_path)},
        input=json.dumps(commands),
        capture_output=True,
        text=True,
        check=True,
    )
    codes = [int(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("code ")]
    expected = [0 if argv[:2] == ("auth", "configure-docker") else 1 for argv in asked]
    assert codes == [*expected, 2], done.stderr


EACH = """
import json, sys
sys.path[:0] = [sys.argv[1] + "/lib", sys.argv[1] + "/lib/third_party"]
from googlecloudsdk import gcloud_main
gcloud = gcloud_main.CreateCLI([])
for argv in json.load(sys.stdin):
    code = 0
    try:
        gcloud.Execute(argv)
    except SystemExit as end:
        code = end.code
    print("code", code)
"""
"""One interpreter for all commands: it takes a second to start."""
