"""`openmodal completion`."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class


@click.command()
@click.argument("shell", type=click.Choice(("bash", "zsh", "fish")))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print what makes a shell complete commands, options and the ids of sandboxes.

    \b
    bash: eval "$(openmodal completion bash)"      in ~/.bashrc
    zsh:  eval "$(openmodal completion zsh)"       in ~/.zshrc
    fish: openmodal completion fish | source       in ~/.config/fish/config.fish
    """
    kind = get_completion_class(shell)
    assert kind, "click has all three"
    click.echo(kind(ctx.find_root().command, {}, "openmodal", "_OPENMODAL_COMPLETE").source())
