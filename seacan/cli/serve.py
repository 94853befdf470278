"""``seacan daemon`` as a command of ``seacan``: hands its command line to :mod:`seacan.cli.daemon` as it is."""

from __future__ import annotations

import click
from click.shell_completion import CompletionItem


class _Daemon(click.Command):
    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.args = list(args)
        return []

    def invoke(self, ctx: click.Context) -> None:
        from seacan.cli.daemon import main

        ctx.exit(main(ctx.args))

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        from seacan.cli.configuration import SETTINGS

        return [
            CompletionItem(f"--{setting.flag}", help=setting.help)
            for setting in SETTINGS
            if f"--{setting.flag}".startswith(incomplete)
        ]


daemon = _Daemon("daemon", help="Run the engine's daemon (also installed as seacand)", add_help_option=False)
