"""`openmodal setup kubernetes`: what a cluster administrator does once."""

from __future__ import annotations

import json

import click

from openmodal import _config
from openmodal.errors import InvalidError

_SUBJECTS = ("user:", "group:", "serviceaccount:")


@click.command()
@click.option(
    "--print", "only_print", is_flag=True, help="Show the manifests as JSON, for kubectl apply -f -; change nothing."
)
@click.option(
    "--grant",
    multiple=True,
    metavar="WHO",
    help="user:NAME, group:NAME or serviceaccount:NAMESPACE/NAME; may be repeated.",
)
@click.option(
    "--most",
    type=click.IntRange(0, 1_000_000),
    default=0,
    metavar="N",
    help="How many sandboxes there may be at once; 0: no limit.",
)
@click.option("--builds", is_flag=True, help="Also a namespace in which images are built; see docs/kubernetes.md.")
@click.option(
    "--serve",
    metavar="IMAGE",
    help="Also a door for programs that say `import modal`, of that image; see docs/coming-from-modal.md.",
)
def kubernetes(only_print: bool, grant: tuple[str, ...], most: int, builds: bool, serve: str | None) -> None:
    """Make the namespace of sandboxes, the rights to use it, and its network policies. May be said
    again.

    The cluster and the namespace are those of the configuration: the current kubeconfig, and the
    namespace `openmodal`.
    """
    from openmodal.engines.kubernetes import api
    from openmodal.engines.kubernetes.admin import doctor, serving, setup
    from openmodal.engines.kubernetes.settings import read

    for who in grant:
        if not who.startswith(_SUBJECTS):
            raise InvalidError(f"--grant {who!r}: write user:NAME, group:NAME or serviceaccount:NAMESPACE/NAME")
    settings = read()
    spaces = {settings.namespace: setup.manifests(settings, grant, most)}
    if builds:
        spaces[settings.builds] = setup.builds(settings, grant)
    if serve:
        spaces[settings.namespace] += serving.manifests(settings, serve, _config.registry())
    if serve and builds:
        spaces[settings.builds].append(serving.builds(settings))
    if only_print:
        items = [item for found in spaces.values() for item in found]
        click.echo(json.dumps({"apiVersion": "v1", "kind": "List", "items": items}, indent=2))
        return
    for namespace, found in spaces.items():
        for line in setup.apply(api.connect(settings.context, namespace), found):
            click.echo(line)
    for line in serving.words(api.connect(settings.context, settings.namespace)) if serve else ():
        click.echo(line)
    click.echo(doctor.policies_enforced(api.connect(settings.context, settings.namespace), settings).line)
