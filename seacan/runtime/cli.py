"""``seacan-runtime``: the OCI runtime as a command, with runc's command line, output and exit codes.

For containerd, podman and dockerd, which run it for each step of a container's life. Nothing but :class:`Container`
is behind it; imports stay few, because every step pays for them.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, NoReturn

from seacan.errors import InvalidParameter, NotFound, SeacanError, Unsupported

if TYPE_CHECKING:
    from seacan.runtime import spec
    from seacan.runtime.container import Container, ExecProcess

NAME: Final = "seacan-runtime"
DEFAULT_ROOT: Final = "/run/seacan-runtime"


class Usage(Exception):
    """The command line makes no sense; the message says why."""


class Options:
    """Parsed options of a command, and what follows them."""

    def __init__(self) -> None:
        self.values: dict[str, list[str]] = {}
        self.arguments: list[str] = []

    def flag(self, name: str) -> bool:
        return self.values.get(name, ["false"])[-1] != "false"

    def text(self, name: str, default: str = "") -> str:
        return self.values.get(name, [default])[-1]

    def given(self, name: str) -> bool:
        return name in self.values

    def number(self, name: str, default: int = 0) -> int:
        text = self.text(name, str(default))
        try:
            return int(text)
        except ValueError:
            raise Usage(f'invalid value "{text}" for flag -{name}: parse error') from None

    def all(self, name: str) -> list[str]:
        return self.values.get(name, [])


_SHORT: Final = {
    "b": "bundle", "d": "detach", "e": "env", "f": "format", "g": "additional-gids", "h": "help", "p": "process",
    "q": "quiet", "r": "resources", "t": "tty", "u": "user", "v": "version", "c": "cap", "a": "all",
}  # fmt: skip

_GLOBAL: Final = {
    "debug": False, "log": True, "log-format": True, "root": True, "criu": True, "systemd-cgroup": False,
    "rootless": True, "help": False, "version": False,
}  # fmt: skip

_CREATE: Final = {
    "bundle": True, "console-socket": True, "pidfd-socket": True, "pid-file": True, "no-pivot": False,
    "no-new-keyring": False, "preserve-fds": True,
}  # fmt: skip


def parse(arguments: Sequence[str], known: dict[str, bool]) -> Options:
    """Go's flag syntax: ``-name value``, ``--name=value``, one dash or two; ends at the first other word.

    ``known`` maps an option to whether it takes a value. Raises Usage.
    """
    options = Options()
    index = 0
    while index < len(arguments):
        word = arguments[index]
        if word == "--":
            index += 1
            break
        if not word.startswith("-") or word == "-":
            break
        name, equals, value = word.lstrip("-").partition("=")
        name = _SHORT.get(name, name)
        if name == "format" and "force" in known:
            name = "force"  # delete -f
        if name not in known:
            raise Usage(f"flag provided but not defined: -{word.lstrip('-').partition('=')[0]}")
        if known[name] and not equals:
            index += 1
            if index >= len(arguments):
                raise Usage(f"flag needs an argument: -{name}")
            value = arguments[index]
        options.values.setdefault(name, []).append(value if known[name] or equals else "true")
        index += 1
    options.arguments = list(arguments[index:])
    return options


# --- output -----------------------------------------------------------------------------------------------------


class Log:
    """logrus, as far as runc's callers parse it: a line of text or JSON for each message."""

    def __init__(self, path: str, format: str) -> None:
        self._path = path
        self._json = format == "json"

    def error(self, message: str) -> None:
        import json
        import time

        at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        if self._json:
            line = json.dumps({"level": "error", "msg": message, "time": at}, separators=(",", ":"))
        else:
            line = f'time="{at}" level=error msg={json.dumps(message, ensure_ascii=False)}'
        if not self._path or self._path == "/dev/stderr":
            sys.stderr.write(line + "\n")
            return
        with open(self._path, "a") as file:
            file.write(line + "\n")
        sys.stderr.write(message + "\n")


def _print_json(value: Any, indent: int = 2) -> None:
    import msgspec

    text = msgspec.json.format(msgspec.json.encode(value), indent=indent).decode()
    sys.stdout.write(text)


# --- commands ---------------------------------------------------------------------------------------------------


class Context:
    """What the global options say."""

    def __init__(self, options: Options) -> None:
        self.root = os.path.abspath(options.text("root") or _default_root())

    def load(self, options: Options) -> Container:
        from seacan.runtime.container import Container

        return Container.load(_id(options), root=self.root)


def _default_root() -> str:
    directory = os.environ.get("XDG_RUNTIME_DIR", "")
    return f"{directory}/{NAME}" if directory and os.geteuid() != 0 else DEFAULT_ROOT


def _id(options: Options) -> str:
    if not options.arguments or not options.arguments[0]:
        raise Usage("container id cannot be empty")
    return options.arguments[0]


def _exactly(options: Options, count: int, name: str) -> None:
    if len(options.arguments) != count:
        raise Usage(f'"{NAME} {name}" requires exactly {count} argument(s)')


def _create(context: Context, options: Options) -> int:
    _exactly(options, 1, "create")
    _launch(context, options, detached=True, name="create")
    return 0


def _run(context: Context, options: Options) -> int:
    from seacan.runtime import foreground
    from seacan.runtime.container import reap

    _exactly(options, 1, "run")
    detach = options.flag("detach")
    container = _launch(context, options, detached=False, name="run", attached_terminal=not detach)
    try:
        if detach:
            container.start()
            return 0
        console, container.console = container.console, None
        code = foreground.follow(container.pidfd, console, container.start)
    except BaseException:
        container.kill(9)
        reap(container.pidfd, block=True)
        container.delete(force=True)
        raise
    if not options.flag("keep"):
        container.delete()
    return code


def _launch(
    context: Context, options: Options, *, detached: bool, name: str, attached_terminal: bool = False
) -> Container:
    from seacan.runtime import spec
    from seacan.runtime.container import Container, Stdio

    bundle = os.path.abspath(options.text("bundle") or ".")
    try:
        with open(f"{bundle}/config.json", "rb") as file:
            configuration = spec.decode_spec(file.read())
    except FileNotFoundError:
        raise NotFound(f"JSON specification file {bundle}/config.json not found") from None
    terminal = configuration.process is not None and configuration.process.terminal
    console_socket = options.text("console-socket")
    if console_socket and (not terminal or attached_terminal):
        raise InvalidParameter("cannot use console socket if runc will not detach or allocate tty")
    if terminal and not console_socket and not attached_terminal:
        raise InvalidParameter("cannot allocate tty if runc will detach without setting console socket")
    preserve = _preserved(options)
    program, flags = _filter(configuration)
    os.makedirs(context.root, 0o711, exist_ok=True)
    container = Container.create(
        _id(options),
        bundle,
        configuration,
        root=context.root,
        stdio=Stdio(0, 1, 2),
        seccomp=program,
        seccomp_flags=flags,
        preserve_fds=preserve,
        detached=detached,
        no_pivot=options.flag("no-pivot"),
        new_keyring=not options.flag("no-new-keyring"),
    )
    try:
        _hand_over(options, container.pid, container.pidfd, container.console, console_socket)
        if console_socket:
            assert container.console is not None
            os.close(container.console)
            container.console = None
    except BaseException:
        container.delete(force=True)
        raise
    return container


def _preserved(options: Options) -> int:
    """How many descriptors after stdio to pass on: --preserve-fds, and those of socket activation."""
    activated = os.environ.get("LISTEN_FDS", "")
    count = options.number("preserve-fds") + (int(activated) if activated.isdigit() else 0)
    for fd in range(3, 3 + count):
        try:
            os.fstat(fd)
        except OSError:
            raise InvalidParameter(f"unable to find file descriptor {fd} to preserve") from None
    return count


def _filter(configuration: spec.Spec) -> tuple[bytes | None, int]:
    linux = configuration.linux
    if linux is None or linux.seccomp is None:
        return None, 0
    from seacan.linux import seccomp

    compiled = seccomp.compile(linux.seccomp)
    return compiled.program, compiled.flags


def _hand_over(options: Options, pid: int, pidfd: int, console: int | None, console_socket: str) -> None:
    """The pid file, and descriptors to whoever listens for them."""
    if console_socket:
        assert console is not None
        _send_fd(console_socket, b"/dev/ptmx", console)
    if options.text("pidfd-socket"):
        _send_fd(options.text("pidfd-socket"), b"pidfd", pidfd)
    path = options.text("pid-file")
    if path:
        directory, name = os.path.split(path)
        temporary = os.path.join(directory, f".{name}")
        with open(temporary, "w") as file:
            file.write(str(pid))
        os.rename(temporary, path)


def _send_fd(path: str, name: bytes, fd: int) -> None:
    import socket

    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.connect(path)
        socket.send_fds(connection, [name], [fd])


def _start(context: Context, options: Options) -> int:
    _exactly(options, 1, "start")
    container = context.load(options)
    status = container.status()
    if status == "stopped":
        raise Unsupported("cannot start a container that has stopped")
    if status != "created":
        raise Unsupported("cannot start an already running container")
    container.start()
    return 0


def _exec(context: Context, options: Options) -> int:
    import contextlib

    from seacan.runtime import foreground
    from seacan.runtime.container import Stdio

    if not options.arguments or (len(options.arguments) < 2 and not options.text("process")):
        raise Usage(f'"{NAME} exec" requires a minimum of {1 if options.arguments else 2} argument(s)')
    if options.given("cgroup"):
        raise Unsupported("exec --cgroup is not supported")
    container = context.load(options)
    status = container.status()
    if status == "stopped":
        raise Unsupported("cannot exec in a stopped container")
    if status == "paused" and not options.flag("ignore-paused"):
        raise Unsupported("cannot exec in a paused container (use --ignore-paused to override)")
    process = _exec_process(container, options)
    detach = options.flag("detach")
    console_socket = options.text("console-socket")
    if process.terminal and detach and not console_socket:
        raise InvalidParameter("cannot allocate tty if runc will detach without setting console socket")
    if console_socket and not (process.terminal and detach):
        raise InvalidParameter("cannot use console socket if runc will not detach or allocate tty")
    program, flags = _filter(container.configuration)
    started: ExecProcess = container.exec(
        process,
        Stdio(0, 1, 2),
        seccomp=program,
        seccomp_flags=flags,
        preserve_fds=_preserved(options),
    )
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, started.pidfd)
        _hand_over(options, started.pid, started.pidfd, started.console, console_socket)
        if detach:
            return 0
        return foreground.follow(started.pidfd, started.console)


def _exec_process(container: Container, options: Options) -> spec.Process:
    import msgspec

    from seacan.runtime import spec

    path = options.text("process")
    if path:
        with open(path, "rb") as file:
            return spec.decode_process(file.read())
    base = container.configuration.process
    assert base is not None
    process = msgspec.structs.replace(
        base, args=options.arguments[1:], terminal=options.flag("tty"), env=[*base.env, *options.all("env")]
    )
    if options.given("cwd"):
        process.cwd = options.text("cwd")
    if options.given("user"):
        uid, _, gid = options.text("user").partition(":")
        try:
            process.user = spec.User(uid=int(uid), gid=int(gid) if gid else base.user.gid)
        except ValueError:
            raise InvalidParameter(f"parsing {options.text('user')!r} as a user failed: not a number") from None
    if options.given("additional-gids"):
        process.user = msgspec.structs.replace(
            process.user, additional_gids=[int(gid) for gid in options.all("additional-gids")]
        )
    if options.given("process-label"):
        process.selinux_label = options.text("process-label")
    if options.given("apparmor"):
        process.apparmor_profile = options.text("apparmor")
    if options.flag("no-new-privs"):
        process.no_new_privileges = True
    if options.given("cap"):
        sets = base.capabilities or spec.Capabilities()
        added = options.all("cap")
        process.capabilities = spec.Capabilities(
            bounding=[*sets.bounding, *added],
            effective=[*sets.effective, *added],
            permitted=[*sets.permitted, *added],
            inheritable=sets.inheritable,
            ambient=sets.ambient,
        )
    return process


def _state(context: Context, options: Options) -> int:
    _exactly(options, 1, "state")
    _print_json(_described(context.load(options)))
    return 0


def _described(container: Container) -> dict[str, Any]:
    from seacan.runtime import spec

    status = container.status()
    found: dict[str, Any] = {
        "ociVersion": spec.VERSION,
        "id": container.id,
        "pid": 0 if status == "stopped" else container.pid,
        "status": status,
        "bundle": container.bundle,
        "rootfs": container.rootfs,
        "created": container.created,
    }
    if container.configuration.annotations:
        found["annotations"] = container.configuration.annotations
    found["owner"] = ""
    return found


def _kill(context: Context, options: Options) -> int:
    from seacan.linux.syscalls import CLONE_NEWPID

    if not 1 <= len(options.arguments) <= 2:
        raise Usage(f'"{NAME} kill" requires a minimum of 1 argument(s)')
    number = _signal(options.arguments[1] if len(options.arguments) > 1 else "SIGTERM")
    container = context.load(options)
    own_pids = container.has_namespace(CLONE_NEWPID)
    if options.flag("all"):
        container.kill(number, everyone=True)
        return 0
    if container.status() == "stopped":
        raise NotFound("container not running")
    # Without a pid namespace of its own, the rest would outlive init.
    container.kill(number, everyone=number == 9 and not own_pids)
    return 0


def _signal(text: str) -> int:
    import signal

    if text.isdigit():
        return int(text)
    name = text.upper()
    try:
        return signal.Signals["SIG" + name.removeprefix("SIG")].value
    except KeyError:
        raise InvalidParameter(f'unknown signal "{name}"') from None


def _delete(context: Context, options: Options) -> int:
    _exactly(options, 1, "delete")
    force = options.flag("force")
    try:
        container = context.load(options)
    except NotFound:
        if force:
            return 0
        raise
    container.delete(force=force)
    return 0


def _containers(context: Context) -> list[Container]:
    from seacan.runtime.container import Container

    found = []
    try:
        names = sorted(os.listdir(context.root))
    except FileNotFoundError:
        names = []
    for name in names:
        try:
            found.append(Container.load(name, root=context.root))
        except (NotFound, InvalidParameter):
            continue  # one that is just being made or deleted
    return found


def _list(context: Context, options: Options) -> int:
    rows = [_described(container) for container in _containers(context)]
    if options.flag("quiet"):
        for row in rows:
            print(row["id"])
        return 0
    form = options.text("format", "table")
    if form == "json":
        import msgspec

        sys.stdout.write(msgspec.json.encode(rows or None).decode() + "\n")
        return 0
    if form != "table":
        raise InvalidParameter("invalid format option")
    header = ("ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER")
    table = [header] + [
        (row["id"], str(row["pid"]), row["status"], row["bundle"], row["created"], row["owner"] or "root")
        for row in rows
    ]
    widths = [max(12, *(len(line[column]) + 3 for line in table)) for column in range(len(header))]
    for line in table:
        print("".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    return 0


def _ps(context: Context, options: Options) -> int:
    import subprocess

    container = context.load(options)
    pids = container.processes()
    form = options.text("format", "table")
    if form == "json":
        print("[" + ",".join(map(str, pids)) + "]")
        return 0
    if form != "table":
        raise InvalidParameter("invalid format option")
    result = subprocess.run(["ps", *(options.arguments[1:] or ["-ef"])], capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise InvalidParameter(f"exit status {result.returncode}: {result.stderr.strip()}")
    lines = result.stdout.splitlines()
    titles = lines[0].split()
    if "PID" not in titles:
        raise InvalidParameter("couldn't find PID field in ps output")
    column = titles.index("PID")
    wanted = {str(pid) for pid in pids}
    print(lines[0])
    for line in lines[1:]:
        fields = line.split()
        if len(fields) > column and fields[column] in wanted:
            print(line)
    return 0


def _pause(context: Context, options: Options) -> int:
    _exactly(options, 1, "pause")
    context.load(options).pause()
    return 0


def _resume(context: Context, options: Options) -> int:
    _exactly(options, 1, "resume")
    context.load(options).resume()
    return 0


_UPDATE: Final = {
    "resources": True, "blkio-weight": True, "cpu-period": True, "cpu-quota": True, "cpu-burst": True,
    "cpu-share": True, "cpu-rt-period": True, "cpu-rt-runtime": True, "cpuset-cpus": True, "cpuset-mems": True,
    "kernel-memory": True, "kernel-memory-tcp": True, "memory": True, "cpu-idle": True, "memory-reservation": True,
    "memory-swap": True, "pids-limit": True, "l3-cache-schema": True, "mem-bw-schema": True,
}  # fmt: skip


def _update(context: Context, options: Options) -> int:
    from seacan.runtime import spec

    _exactly(options, 1, "update")
    container = context.load(options)
    path = options.text("resources")
    if path:
        if path == "-":
            data = sys.stdin.buffer.read()
        else:
            with open(path, "rb") as file:
                data = file.read()
        container.update(spec.decode_resources(data))
        return 0
    if options.given("l3-cache-schema") or options.given("mem-bw-schema"):
        raise Unsupported("Intel RDT is not enabled")

    def given(name: str) -> int | None:
        return options.number(name) if options.given(name) else None

    def size(name: str) -> int | None:
        return _bytes(options.text(name)) if options.given(name) else None

    resources = spec.LinuxResources(
        cpu=spec.LinuxCPU(
            shares=given("cpu-share"),
            quota=given("cpu-quota"),
            burst=given("cpu-burst"),
            period=given("cpu-period"),
            realtime_period=given("cpu-rt-period"),
            realtime_runtime=given("cpu-rt-runtime"),
            cpus=options.text("cpuset-cpus"),
            mems=options.text("cpuset-mems"),
            idle=given("cpu-idle"),
        ),
        memory=spec.LinuxMemory(limit=size("memory"), reservation=size("memory-reservation"), swap=size("memory-swap")),
    )
    if options.given("pids-limit"):
        resources.pids = spec.LinuxPids(limit=options.number("pids-limit"))
    if options.given("blkio-weight"):
        resources.block_io = spec.LinuxBlockIO(weight=options.number("blkio-weight"))
    container.update(resources)
    return 0


def _bytes(text: str) -> int:
    """``512M`` and the like."""
    units = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40, "p": 1 << 50}
    digits = text.rstrip("bBkKmMgGtTpPi")
    unit = text[len(digits) :].lower().removesuffix("b").removesuffix("i")
    try:
        return int(float(digits) * units[unit]) if "." in digits else int(digits) * units[unit]
    except (ValueError, KeyError):
        raise InvalidParameter(f"invalid size: '{text}'") from None


def _events(context: Context, options: Options) -> int:
    import select

    from seacan.runtime import events

    _exactly(options, 1, "events")
    container = context.load(options)
    if container.status() == "stopped":
        raise NotFound(f"container with id {container.id} is not running")
    if options.flag("stats"):
        events.write_stats(container)
        return 0
    interval = events.duration(options.text("interval", "5s"))
    poll = select.poll()
    poll.register(container.pidfd, select.POLLIN)
    watch = container.cgroup.watch_oom() if container.cgroup is not None else None
    if watch is not None:
        poll.register(watch.fileno(), select.POLLIN | select.POLLPRI)
    while True:
        ready = dict(poll.poll(interval * 1000))
        if container.pidfd in ready:
            return 0
        if watch is not None and watch.fileno() in ready:
            if watch.killed():
                events.write_oom(container)
            continue
        events.write_stats(container)


def _spec(context: Context, options: Options) -> int:
    from seacan.runtime import defaults, spec

    directory = options.text("bundle")
    path = os.path.join(directory, "config.json") if directory else "config.json"
    if os.path.exists(path):
        raise InvalidParameter("File config.json exists. Remove it first")
    import msgspec

    data = spec.encode(defaults.example(rootless=options.flag("rootless")))
    with open(path, "xb") as file:
        file.write(msgspec.json.format(data, indent=4) + b"\n")
    return 0


def _features(context: Context, options: Options) -> int:
    from seacan.runtime import defaults

    _print_json(defaults.features(), indent=4)
    return 0


def _refused(what: str) -> Callable[[Context, Options], int]:
    def command(context: Context, options: Options) -> NoReturn:
        raise Unsupported(f"{what} is not supported: this runtime has no CRIU support")

    return command


_Command = tuple[Callable[[Context, Options], int], dict[str, bool], str]

COMMANDS: Final[dict[str, _Command]] = {
    "checkpoint": (
        _refused("checkpoint"),
        {"image-path": True, "work-path": True, "parent-path": True, "leave-running": False, "tcp-established": False,
         "tcp-skip-in-flight": False, "link-remap": False, "ext-unix-sk": False, "shell-job": False,
         "lazy-pages": False, "status-fd": True, "page-server": True, "file-locks": False, "pre-dump": False,
         "manage-cgroups-mode": True, "empty-ns": True, "auto-dedup": False},
        "checkpoint a running container",
    ),
    "create": (_create, _CREATE, "create a container"),
    "delete": (_delete, {"force": False}, "delete any resources held by the container"),
    "events": (_events, {"interval": True, "stats": False}, "display container events and statistics"),
    "exec": (
        _exec,
        {"console-socket": True, "pidfd-socket": True, "cwd": True, "env": True, "tty": False, "user": True,
         "additional-gids": True, "process": True, "detach": False, "pid-file": True, "process-label": True,
         "apparmor": True, "no-new-privs": False, "cap": True, "preserve-fds": True, "cgroup": True,
         "ignore-paused": False},
        "execute new process inside the container",
    ),
    "features": (_features, {}, "show the enabled features"),
    "kill": (_kill, {"all": False}, "send a signal (default: SIGTERM) to the container's init process"),
    "list": (_list, {"format": True, "quiet": False}, "list containers with the given root"),
    "pause": (_pause, {}, "suspend all processes inside the container"),
    "ps": (_ps, {"format": True}, "display the processes running inside a container"),
    "restore": (
        _refused("restore"),
        {"console-socket": True, "image-path": True, "work-path": True, "tcp-established": False,
         "ext-unix-sk": False, "shell-job": False, "file-locks": False, "manage-cgroups-mode": True, "bundle": True,
         "detach": False, "pid-file": True, "no-subreaper": False, "no-pivot": False, "empty-ns": True,
         "auto-dedup": False, "lazy-pages": False, "lsm-profile": True, "lsm-mount-context": True},
        "restore a container from a previous checkpoint",
    ),
    "resume": (_resume, {}, "resume all processes that have been previously paused"),
    "run": (_run, {**_CREATE, "detach": False, "keep": False, "no-subreaper": False}, "create and run a container"),
    "spec": (_spec, {"bundle": True, "rootless": False}, "create a new specification file"),
    "start": (_start, {}, "execute the user defined process in a created container"),
    "state": (_state, {}, "output the state of a container"),
    "update": (_update, _UPDATE, "update container resource constraints"),
}  # fmt: skip

_ENTERING: Final = frozenset(("create", "run", "exec"))
"""Commands whose process becomes one of a container."""


def _help() -> str:
    lines = [
        f"usage: {NAME} [--root DIR] [--log FILE] [--log-format text|json] [--debug] COMMAND [OPTIONS] [ARGUMENTS]",
        "",
        "An OCI runtime with runc's command line.",
        "",
        *(f"  {name:<12}{about}" for name, (_, _, about) in sorted(COMMANDS.items())),
    ]
    return "\n".join(lines)


def _version() -> str:
    from importlib.metadata import version

    from seacan.runtime import spec

    return f"{NAME} version {version('seacan')}\nspec: {spec.VERSION}"


def run(arguments: Sequence[str]) -> int:
    """Carry out one command line; returns the exit status."""
    log = Log("", "text")
    name = ""
    try:
        options = parse(arguments, _GLOBAL)
        log = Log(options.text("log"), options.text("log-format", "text"))
        if options.flag("version"):
            print(_version())
            return 0
        if options.flag("help") or not options.arguments or options.arguments[0] in ("help", "h"):
            print(_help())
            return 0
        if options.text("log-format", "text") not in ("text", "json"):
            raise Usage("invalid log-format: " + options.text("log-format"))
        name, *rest = options.arguments
        if name not in COMMANDS:
            raise Usage(f"No help topic for '{name}'")
        command, known, about = COMMANDS[name]
        parsed = parse(rest, {**known, "help": False})
        if name in ("kill", "ps"):
            _late_options(parsed, known)
        if parsed.flag("help"):
            print(f"{NAME} {name} - {about}\noptions: " + " ".join(f"--{option}" for option in sorted(known)))
            return 0
        if options.flag("systemd-cgroup"):
            raise Unsupported("systemd cgroup flag passed, but seacan-runtime manages cgroups itself (cgroupfs)")
        if name in _ENTERING:
            from seacan.linux import sealed

            sealed.reexec()
        return command(Context(options), parsed)
    except Usage as error:
        log.error(str(error))
        return 1
    except SeacanError as error:
        log.error(f"{_prefix(name)}{error}")
        return 255 if name == "exec" else 1
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        log.error(f"{_prefix(name)}{where}{error.strerror}")
        return 255 if name == "exec" else 1


def _prefix(name: str) -> str:
    """As runc has it: its name before the failures of create and run, and none before those of exec."""
    if name == "exec":
        return "exec failed: "
    return f"{NAME} {name} failed: " if name in _ENTERING else ""


def _late_options(parsed: Options, known: dict[str, bool]) -> None:
    """`kill ID --all SIGNAL` and `ps ID --format json` are written, too."""
    if not parsed.arguments:
        return
    first, *rest = parsed.arguments
    kept = [first]
    while rest:
        word = rest.pop(0)
        name = _SHORT.get(word.lstrip("-"), word.lstrip("-")) if word.startswith("--") or word == "-a" else ""
        if name in known:
            parsed.values.setdefault(name, []).append(rest.pop(0) if known[name] and rest else "true")
        else:
            kept.append(word)
    parsed.arguments = kept


def main() -> NoReturn:
    """The entry point of ``seacan-runtime``."""
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
