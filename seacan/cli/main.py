"""``seacan``: the command line. Only what a command needs is imported when it runs."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any, Final, NoReturn

import click

from seacan.cli.command import Group, Session, run_root

_CONTAINER, _RUN, _IMAGE, _SYSTEM = (f"seacan.cli.{name}" for name in ("container", "run", "image", "system"))

COMMANDS: Final[Mapping[str, tuple[str, str]]] = {
    # what one does most
    "run": (f"{_RUN}:run", "Create and run a new container from an image"),
    "exec": (f"{_RUN}:exec_", "Execute a command in a running container"),
    "ps": (f"{_CONTAINER}:ps", "List containers"),
    "build": ("seacan.cli.build:build", "Build an image from a Dockerfile"),
    "pull": (f"{_IMAGE}:pull", "Download an image from a registry"),
    "push": (f"{_IMAGE}:push", "Upload an image to a registry"),
    "images": (f"{_IMAGE}:images", "List images"),
    "logs": (f"{_CONTAINER}:logs", "Fetch the logs of a container"),
    "login": (f"{_SYSTEM}:login", "Authenticate to a registry"),
    "logout": (f"{_SYSTEM}:logout", "Log out from a registry"),
    "search": (f"{_IMAGE}:search", "Search a registry for images"),
    "version": (f"{_SYSTEM}:version", "Show the version information"),
    "info": (f"{_SYSTEM}:info", "Display system-wide information"),
    # the nouns
    "builder": ("seacan.cli.builder:group", "Manage builds"),
    "container": (f"{_CONTAINER}:group", "Manage containers"),
    "image": (f"{_IMAGE}:group", "Manage images"),
    "manifest": ("seacan.cli.manifest:group", "Manage image manifests and manifest lists"),
    "network": ("seacan.cli.network:group", "Manage networks"),
    "registry": ("seacan.cli.registry:group", "Run a registry, and look after one"),
    "system": (f"{_SYSTEM}:group", "Manage Seacan"),
    "volume": ("seacan.cli.volume:group", "Manage volumes"),
    # Seacan's own
    "daemon": ("seacan.cli.serve:daemon", "Run the engine's daemon (also installed as seacand)"),
    "doctor": ("seacan.cli.doctor:doctor", "Say what this host can and cannot do, and how to mend it"),
    "completion": ("seacan.cli.completion:completion", "Print the completion script for a shell"),
    # Docker's shortcuts
    "attach": (f"{_RUN}:attach", "Attach local standard input, output, and error streams to a running container"),
    "commit": (f"{_CONTAINER}:commit", "Create a new image from a container's changes"),
    "cp": ("seacan.cli.copy:cp", "Copy files/folders between a container and the local filesystem"),
    "create": (f"{_RUN}:create", "Create a new container"),
    "diff": (f"{_CONTAINER}:diff", "Inspect changes to files or directories on a container's filesystem"),
    "events": (f"{_SYSTEM}:events", "Get real time events from the server"),
    "export": (f"{_CONTAINER}:export", "Export a container's filesystem as a tar archive"),
    "history": (f"{_IMAGE}:history", "Show the history of an image"),
    "import": (f"{_IMAGE}:import_", "Import the contents from a tarball to create a filesystem image"),
    "inspect": (f"{_SYSTEM}:inspect", "Return low-level information on Docker objects"),
    "kill": (f"{_CONTAINER}:kill", "Kill one or more running containers"),
    "load": (f"{_IMAGE}:load", "Load an image from a tar archive or STDIN"),
    "pause": (f"{_CONTAINER}:pause", "Pause all processes within one or more containers"),
    "port": (f"{_CONTAINER}:port", "List port mappings or a specific mapping for the container"),
    "rename": (f"{_CONTAINER}:rename", "Rename a container"),
    "restart": (f"{_CONTAINER}:restart", "Restart one or more containers"),
    "rm": (f"{_CONTAINER}:rm", "Remove one or more containers"),
    "rmi": (f"{_IMAGE}:rmi", "Remove one or more images"),
    "save": (f"{_IMAGE}:save", "Save one or more images to a tar archive (streamed to STDOUT by default)"),
    "start": (f"{_RUN}:start", "Start one or more stopped containers"),
    "stats": (f"{_CONTAINER}:stats", "Display a live stream of container(s) resource usage statistics"),
    "stop": (f"{_CONTAINER}:stop", "Stop one or more running containers"),
    "tag": (f"{_IMAGE}:tag", "Create a tag TARGET_IMAGE that refers to SOURCE_IMAGE"),
    "top": (f"{_CONTAINER}:top", "Display the running processes of a container"),
    "unpause": (f"{_CONTAINER}:unpause", "Unpause all processes within one or more containers"),
    "update": (f"{_CONTAINER}:update", "Update configuration of one or more containers"),
    "wait": (f"{_CONTAINER}:wait", "Block until one or more containers stop, then print their exit codes"),
}


class _Root(Group):
    """The top level, with the options that say which daemon."""

    def __init__(self) -> None:
        super().__init__(
            "seacan",
            "A container engine that speaks the Docker API.",
            COMMANDS,
            params=[
                click.Option(["-H", "--host"], multiple=True, help="Daemon socket to connect to"),
                click.Option(["--tls"], is_flag=True, default=None, help="Use TLS; implied by --tlsverify"),
                click.Option(["--tlscacert"], default="", help="Trust certs signed only by this CA"),
                click.Option(["--tlscert"], default="", help="Path to TLS certificate file"),
                click.Option(["--tlskey"], default="", help="Path to TLS key file"),
                click.Option(["--tlsverify"], is_flag=True, default=None, help="Use TLS and verify the remote"),
                click.Option(["-v", "--version"], is_flag=True, help="Print version information and quit"),
            ],
        )

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        rest = super().parse_args(ctx, args)
        given = ctx.params
        if given["version"] and not ctx.resilient_parsing:
            import seacan

            click.echo(f"Seacan version {seacan.__version__}")
            ctx.exit()
        if len(given["host"]) > 1:
            raise click.UsageError("Please specify only one -H")
        ctx.obj = Session(
            host=given["host"][0] if given["host"] else "",
            tls=given["tls"],
            verify=given["tlsverify"],
            ca=given["tlscacert"],
            cert=given["tlscert"],
            key=given["tlskey"],
        )
        return rest

    def invoke(self, ctx: click.Context) -> Any:
        ctx.params = {}
        return super().invoke(ctx)


root = _Root()


def main() -> NoReturn:
    """The entry point of the ``seacan`` program."""
    run_root(root, sys.argv[1:])


if __name__ == "__main__":
    main()
