"""``run``, ``create``, ``start``, ``attach`` and ``exec``: the commands that converse with a process.

Exit statuses are docker's: the process's own; 125 where the engine failed, 126 and 127 where the command could not be
executed or found.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from seacan.cli import create as spec
from seacan.cli import terminal
from seacan.cli.client import APIError, Client, Response
from seacan.cli.command import Exit, command, each, flag, given, switch, warn
from seacan.cli.terminal import Detached
from seacan.errors import InvalidParameter, SeacanError


def _fail(error: SeacanError, verb: str, status: int) -> Exit:
    prefix = "Error response from daemon: " if isinstance(error, APIError) else ""
    warn(f"seacan: {prefix}{error.message}\n\nRun 'seacan {verb} --help' for more information")
    return Exit(status)


def start_status(message: str) -> int:
    """The exit status that docker gives a start that failed with this message."""
    for text, status in (
        ("executable file not found", 127),
        ("no such file or directory", 127),
        ("system cannot find the file specified", 127),
        ("permission denied", 126),
        ("is a directory", 126),
    ):
        if text in message:
            return status
    return 125


# --- create --------------------------------------------------------------------------------------------------------


def _create(client: Client, arguments: Sequence[str], options: Mapping[str, Any], body: dict[str, Any]) -> str:
    """Create the container, pulling its image first where the policy says so; gives the ID."""
    image, policy = arguments[0], options["pull"]
    if policy not in ("always", "missing", "never"):
        raise InvalidParameter(f'invalid pull option: \'{policy}\': must be one of "always", "missing" or "never"')
    cidfile = options["cidfile"]
    if cidfile and os.path.exists(cidfile):
        raise InvalidParameter(
            f"container ID file found, make sure the other container isn't running or delete {cidfile}"
        )

    def pull() -> None:
        from seacan.cli.image import pull_image

        pull_image(client, image, platform=options["platform"], quiet=options["quiet"], file=sys.stderr)

    if policy == "always":
        pull()
    query = {"name": options["name"], "platform": options["platform"]}
    try:
        answer = client.post("/containers/create", body, **query)
    except APIError as error:
        if policy != "missing" or error.status != 404 or "no such image" not in error.message.lower():
            raise
        if not options["quiet"]:
            warn(f"Unable to find image '{_tagged(image)}' locally")
        pull()
        answer = client.post("/containers/create", body, **query)
    for warning in answer.get("Warnings") or []:
        warn(f"WARNING: {warning}")
    identifier: str = answer["Id"]
    if cidfile:
        with open(cidfile, "x", encoding="ascii") as file:
            file.write(identifier)
    return identifier


def _tagged(image: str) -> str:
    last = image.rpartition("/")[2]
    return image if ":" in last or "@" in last else f"{image}:latest"


@command("create", "IMAGE [COMMAND] [ARG...]", least=1, interspersed=False, complete="image", failure_status=1)
@spec.container_flags
def create(client: Client, arguments: list[str], **options: Any) -> None:
    """Create a new container"""
    try:
        print(_create(client, arguments, options, spec.request(arguments, options, given())))
    except SeacanError as error:
        raise _fail(error, "create", 125 if not isinstance(error, APIError) else 1) from None


# --- run -----------------------------------------------------------------------------------------------------------


@command("run", "IMAGE [COMMAND] [ARG...]", least=1, interspersed=False, complete="image", failure_status=125)
@spec.container_flags
@switch("detach", "Run container in background and print container ID", short="d")
@flag("detach-keys", "Override the key sequence for detaching a container", default=terminal.DEFAULT_DETACH_KEYS)
@switch("sig-proxy", "Proxy received signals to the process", default=True)
def run(
    client: Client, arguments: list[str], *, detach: bool, detach_keys: str, sig_proxy: bool, **options: Any
) -> None:
    """Create and run a new container from an image"""
    try:
        body = spec.request(arguments, options, given())
        if detach:
            if options["attach"]:
                raise InvalidParameter("conflicting options: cannot specify both --attach and --detach")
            body |= {"AttachStdin": False, "AttachStdout": False, "AttachStderr": False, "StdinOnce": False}
        elif options["tty"] and options["interactive"] and body["AttachStdin"] and not os.isatty(0):
            warn("the input device is not a TTY")
            raise Exit(1)
        if options["tty"] and (size := terminal.window_size()) is not None:
            body["HostConfig"]["ConsoleSize"] = list(size)
        terminal.parse_detach_keys(detach_keys)
        identifier = _create(client, arguments, options, body)
    except SeacanError as error:
        raise _fail(error, "run", 125) from None
    if detach:
        try:
            client.post(f"/containers/{identifier}/start")
        except APIError as error:
            raise _fail(error, "run", start_status(error.message)) from None
        print(identifier)
        return
    raise Exit(_run_attached(client, identifier, body, detach_keys, sig_proxy))


def _run_attached(client: Client, identifier: str, body: Mapping[str, Any], detach_keys: str, sig_proxy: bool) -> int:
    streams = {name: body[f"Attach{name.capitalize()}"] for name in ("stdin", "stdout", "stderr")}
    with contextlib.ExitStack() as stack:
        connection = pending = None
        if any(streams.values()):
            connection, pending = _attach(client, identifier, streams, detach_keys)
            stack.callback(connection.close)
        # Asked for before the start, so that no exit is missed.
        condition = "removed" if body["HostConfig"]["AutoRemove"] else "next-exit"
        waiting = stack.enter_context(
            client.request("POST", f"/containers/{identifier}/wait", {"condition": condition})
        )
        try:
            client.post(f"/containers/{identifier}/start")
        except APIError as error:
            warn(f"seacan: Error response from daemon: {error.message}\n\nRun 'seacan run --help' for more information")
            if body["HostConfig"]["AutoRemove"]:
                with contextlib.suppress(SeacanError):
                    waiting.read()
            return start_status(error.message)
        if connection is not None:
            try:
                _converse(
                    client,
                    identifier,
                    connection,
                    pending or b"",
                    body["Tty"],
                    streams["stdin"],
                    detach_keys,
                    sig_proxy,
                )
            except Detached:
                return 0
        return _exit_code(waiting)


def _exit_code(waiting: Response) -> int:
    answer = waiting.json()
    if error := (answer.get("Error") or {}).get("Message"):
        raise APIError(error, 500)
    status: int = answer["StatusCode"]
    return status


def _attach(
    client: Client, identifier: str, streams: Mapping[str, bool], detach_keys: str, *, logs: bool = False
) -> tuple[socket.socket, bytes]:
    query = {"stream": True, "logs": logs, "detachKeys": detach_keys, **streams}
    return client.request("POST", f"/containers/{identifier}/attach", query, upgrade=True).hijack()


def _converse(
    client: Client,
    identifier: str,
    connection: socket.socket,
    pending: bytes,
    tty: bool,
    stdin: bool,
    detach_keys: str,
    sig_proxy: bool,
) -> None:
    path = f"/containers/{identifier}"
    terminal.converse(
        connection,
        pending,
        stdin=stdin,
        terminal=tty,
        detach_keys=detach_keys,
        resize=_resizer(client, path) if tty else None,
        send_signal=_signaller(client, path) if sig_proxy else None,
    )


def _resizer(client: Client, path: str) -> Callable[[int, int], None]:
    def resize(height: int, width: int) -> None:
        client.post(f"{path}/resize", h=height, w=width)

    return resize


def _signaller(client: Client, path: str) -> Callable[[int], None]:
    def send(number: int) -> None:
        client.post(f"{path}/kill", signal=str(number))

    return send


# --- start, attach -------------------------------------------------------------------------------------------------


@command("start", "CONTAINER [CONTAINER...]", least=1, complete="container")
@switch("attach", "Attach STDOUT/STDERR and forward signals", short="a")
@flag("detach-keys", "Override the key sequence for detaching a container", default=terminal.DEFAULT_DETACH_KEYS)
@switch("interactive", "Attach container's STDIN", short="i")
def start(client: Client, arguments: list[str], *, attach: bool, detach_keys: str, interactive: bool) -> None:
    """Start one or more stopped containers"""
    if not attach and not interactive:

        def one(container: str) -> str:
            client.post(f"/containers/{container}/start")
            return container

        return each(arguments, one)
    if len(arguments) > 1:
        raise InvalidParameter("you cannot start and attach multiple containers at once")
    found = client.get(f"/containers/{arguments[0]}/json")
    config = found["Config"]
    body = {
        **config,
        "AttachStdin": interactive and config["OpenStdin"],
        "AttachStdout": True,
        "AttachStderr": True,
        "HostConfig": found["HostConfig"],
    }
    raise Exit(_run_attached(client, found["Id"], body, detach_keys, not config["Tty"]))


@command("attach", "CONTAINER", exactly=1, complete="running")
@flag("detach-keys", "Override the key sequence for detaching a container", default=terminal.DEFAULT_DETACH_KEYS)
@switch("no-stdin", "Do not attach STDIN")
@switch("sig-proxy", "Proxy all received signals to the process", default=True)
def attach(client: Client, arguments: list[str], *, detach_keys: str, no_stdin: bool, sig_proxy: bool) -> None:
    """Attach local standard input, output, and error streams to a running container"""
    found = client.get(f"/containers/{arguments[0]}/json")
    state, config = found["State"], found["Config"]
    if not state["Running"]:
        raise InvalidParameter("cannot attach to a stopped container, start it first")
    if state["Paused"]:
        raise InvalidParameter("cannot attach to a paused container, unpause it first")
    if state["Restarting"]:
        raise InvalidParameter("cannot attach to a restarting container, wait until it is running")
    stdin = not no_stdin and config["OpenStdin"]
    if stdin and config["Tty"] and not os.isatty(0):
        raise InvalidParameter("the input device is not a TTY")
    with client.request("POST", f"/containers/{found['Id']}/wait", {}) as waiting:
        streams = {"stdin": stdin, "stdout": True, "stderr": True}
        connection, pending = _attach(client, found["Id"], streams, detach_keys)
        with connection:
            try:
                _converse(
                    client, found["Id"], connection, pending, config["Tty"], stdin, detach_keys,
                    sig_proxy and not config["Tty"],
                )  # fmt: skip
            except Detached:
                print("read escape sequence", file=sys.stderr)
                return
        raise Exit(_exit_code(waiting))


# --- exec ----------------------------------------------------------------------------------------------------------


@command("exec", "CONTAINER COMMAND [ARG...]", least=2, interspersed=False, complete="running")
@switch("detach", "Detached mode: run command in the background", short="d")
@flag("detach-keys", "Override the key sequence for detaching a container", default="")
@flag("env", "Set environment variables", short="e", many=True)
@flag("env-file", "Read in a file of environment variables", many=True)
@switch("interactive", "Keep STDIN open even if not attached", short="i")
@switch("privileged", "Give extended privileges to the command")
@switch("tty", "Allocate a pseudo-TTY", short="t")
@flag("user", "Username or UID (format: <name|uid>[:<group|gid>])", short="u", default="")
@flag("workdir", "Working directory inside the container", short="w", default="")
def exec_(
    client: Client,
    arguments: list[str],
    *,
    detach: bool,
    detach_keys: str,
    env: list[str],
    env_file: list[str],
    interactive: bool,
    privileged: bool,
    tty: bool,
    user: str,
    workdir: str,
) -> None:
    """Execute a command in a running container"""
    stdin = interactive and not detach
    if tty and stdin and not os.isatty(0):
        raise InvalidParameter("the input device is not a TTY")
    body = {
        "AttachStdin": stdin,
        "AttachStdout": not detach,
        "AttachStderr": not detach,
        "Cmd": arguments[1:],
        "DetachKeys": detach_keys,
        "Env": spec.environment(env, env_file),
        "Privileged": privileged,
        "Tty": tty,
        "User": user,
        "WorkingDir": workdir,
    }
    size = terminal.window_size() if tty else None
    if size is not None:
        body["ConsoleSize"] = list(size)
    try:
        identifier = client.post(f"/containers/{arguments[0]}/exec", body)["Id"]
        started = {"Detach": detach, "Tty": tty, **({"ConsoleSize": list(size)} if size is not None else {})}
        if detach:
            client.post(f"/exec/{identifier}/start", started)
            return
        response = client.request(
            "POST",
            f"/exec/{identifier}/start",
            body=json.dumps(started).encode(),
            headers={"Content-Type": "application/json"},
            upgrade=True,
        )
    except APIError as error:
        warn(f"Error response from daemon: {error.message}")
        raise Exit(start_status(error.message) if start_status(error.message) != 125 else 1) from None
    connection, pending = response.hijack()
    with connection:
        try:
            terminal.converse(
                connection,
                pending,
                stdin=stdin,
                terminal=tty,
                detach_keys=detach_keys or terminal.DEFAULT_DETACH_KEYS,
                resize=_resizer(client, f"/exec/{identifier}") if tty else None,
            )
        except Detached:
            return
    raise Exit(client.get(f"/exec/{identifier}/json")["ExitCode"] or 0)
