"""`openmodal setup gcp`: from a project of Google Cloud to a configured cluster.

What it has gcloud do is in engines/kubernetes/google/gcp.py.
"""

from __future__ import annotations

import shlex
import sys
from typing import TYPE_CHECKING

import click

from openmodal import _config
from openmodal.cli import _configuration
from openmodal.cli._output import tell
from openmodal.errors import InvalidError

if TYPE_CHECKING:
    from openmodal.engines.kubernetes.google.gcp import Cluster, Step, Wish


@click.command()
@click.option("--project", metavar="ID", help="The project; without it, gcloud's, or you are asked.")
@click.option("--region", metavar="NAME", help="Such as europe-west4; without it, gcloud's, or you are asked.")
@click.option("--cluster", metavar="NAME", default="openmodal", show_default=True, help="Made if it is not there.")
@click.option("--repository", metavar="NAME", default="openmodal", show_default=True, help="Made if it is not there.")
@click.option("--standard", is_flag=True, help="Make a standard cluster with gVisor nodes instead of an Autopilot one.")
@click.option("--cloud-build", is_flag=True, help="Have images built by Cloud Build, not by this machine.")
@click.option("--dry-run", is_flag=True, help="Show every command and the configuration; change nothing.")
def gcp(
    project: str | None,
    region: str | None,
    cluster: str,
    repository: str,
    standard: bool,
    cloud_build: bool,
    dry_run: bool,
) -> None:
    """Make a cluster and a registry on Google Cloud, or use those that are there, and configure
    this machine for them.

    May be said again: what is there stays as it is. A new cluster takes about ten minutes, and
    costs money from then on.
    """
    from openmodal.engines.kubernetes.google import gcloud
    from openmodal.engines.kubernetes.google.gcp import Wish, finish, foundation

    gcloud.check()
    account = gcloud.account()
    project = _chosen("project", "project", project or account.project)
    region = _chosen("region", "compute/region", region or account.region)
    wish = Wish(project, region, cluster, repository, standard, cloud_build)
    act = _show if dry_run else _perform
    for step in foundation(wish):
        act(step)
    there = _cluster(wish, dry_run=dry_run)
    text = _configured(wish, there)  # before more is done: the file that is there may be wrong
    for step in finish(wish, there):
        act(step)
    (_show_rest if dry_run else _finish)(wish, text)


def _chosen(name: str, key: str, value: str) -> str:
    """What a flag or gcloud says, or what is answered at a terminal."""
    if not value and sys.stdin.isatty():
        value = str(click.prompt(f"Google Cloud: {name}", err=True)).strip()
    if not value:
        raise InvalidError(f"no {name} is chosen; give --{name}, or run `gcloud config set {key} …`")
    return value


def _perform(step: Step) -> None:
    from openmodal.engines.kubernetes.google import gcloud

    if gcloud.is_done(step):
        click.echo(f"{step.what}: done already")
        return
    click.echo(f"{step.what} …")
    gcloud.do(step, lambda line: tell(f"  {line}", newline=False))


def _show(step: Step) -> None:
    """The command; as a comment, if there is nothing to do."""
    from openmodal.engines.kubernetes.google import gcloud

    mark = "# done already: " if gcloud.is_done(step) else ""
    click.echo(mark + shlex.join(("gcloud", *step.do)))


def _cluster(wish: Wish, *, dry_run: bool) -> Cluster:
    """What the cluster is, or will be."""
    from openmodal.engines.kubernetes.google import gcloud, gcp

    if dry_run and not gcloud.is_done(gcp.foundation(wish)[-1]):
        return gcp.expected(wish)
    return gcloud.cluster(wish)


def _configured(wish: Wish, cluster: Cluster) -> str:
    """The new configuration file. Namespace and CPU of the nodes stay as the user has set them."""
    from openmodal.engines.kubernetes.google.gcp import configuration
    from openmodal.engines.kubernetes.settings import read

    defaults = {"kubernetes": {"namespace": read().namespace, "architecture": "amd64"}}
    return _configuration.merged(_config.config_file(), configuration(wish, cluster), defaults)


def _show_rest(_wish: Wish, text: str) -> None:
    click.echo(f"openmodal setup kubernetes\n\n# {_config.config_file()}:\n{text}", nl=False)


def _finish(wish: Wish, text: str) -> None:
    """The namespace, and the configuration last: it holds only if all the rest does."""
    from openmodal.engines.kubernetes import api
    from openmodal.engines.kubernetes.admin import setup
    from openmodal.engines.kubernetes.settings import read

    settings = read()
    for line in setup.apply(api.connect(wish.context, settings.namespace), setup.manifests(settings)):
        click.echo(line)
    _configuration.write(_config.config_file(), text)
    click.echo(f"{_config.config_file()}: written; `openmodal run` uses the cluster from now on")
