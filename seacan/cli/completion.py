"""``seacan completion SHELL``: the script that a shell loads; the completing itself is click's."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from seacan.cli.client import Client
from seacan.cli.command import command
from seacan.errors import InvalidParameter


@command("completion", "bash|zsh|fish", exactly=1)
def completion(client: Client, arguments: list[str]) -> None:
    """Print the completion script for a shell

    bash:  seacan completion bash > /etc/bash_completion.d/seacan
    zsh:   seacan completion zsh > /usr/local/share/zsh/site-functions/_seacan
    fish:  seacan completion fish > ~/.config/fish/completions/seacan.fish
    """
    from seacan.cli.main import root

    shell = get_completion_class(arguments[0])
    if shell is None:
        raise InvalidParameter(f"no completion for shell {arguments[0]!r}: one of bash, zsh, fish")
    click.echo(shell(root, {}, "seacan", "_SEACAN_COMPLETE").source())
