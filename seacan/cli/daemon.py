"""``seacan daemon``, also installed as ``seacand``: the process around the engine.

It reads the configuration (:mod:`seacan.cli.configuration`), holds pid file and sockets, turns signals into calls, and
serves :mod:`seacan.api`. What dockerd does with SIGTERM, SIGINT (end in order; at the third, at once), SIGHUP (reload)
and SIGUSR1 (stacks to a file) it does too. It knows nothing of containers.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from seacan.cli import configuration, listeners, logs
from seacan.cli.configuration import Configuration
from seacan.cli.flags import FlagError
from seacan.errors import SeacanError, System

if TYPE_CHECKING:
    from seacan.api.application import Server
    from seacan.engine.engine import Engine

log = logging.getLogger("seacan.daemon")

_FORCED_AFTER = 3
"""Signals to end, after which the daemon ends at once."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the daemon with these flags (the process's own without); returns the exit status."""
    # Nothing that is made while starting is garbage: without the collector the start takes a fifth less.
    gc.disable()
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    try:
        config = configuration.load(arguments)
        if config.version:
            from seacan.engine.version import SERVER_VERSION, VERSION

            print(f"seacand version {VERSION} (API of Docker {SERVER_VERSION.partition('+')[0]})")
            return 0
        if any(argument == "--help" for argument in arguments):
            print(help_text())
            return 0
        tls = listeners.server_tls(config)
        if config.validate:
            print("configuration OK", file=sys.stderr)
            return 0
    except FlagError as error:
        print(f"{error.message}\nSee 'seacan daemon --help'.", file=sys.stderr)
        return 125
    except SeacanError as error:
        print(error.message, file=sys.stderr)
        return 1
    logs.configure(config.log_level, config.log_format, debug=config.engine.debug)
    log.info("Starting up")
    for warning in config.warnings:
        log.warning(warning)
    try:
        if os.geteuid() != 0:
            raise System("seacand needs to be started with root privileges")
        from seacan.runtime.launcher import raise_descriptor_limit

        _proxies(config)
        os.umask(0o022)
        raise_descriptor_limit()
        with pid_file(config.pidfile), contextlib.ExitStack() as sockets:
            opened = listeners.listen(config)
            for listener in opened:
                sockets.callback(listener.close)
            import asyncio

            return asyncio.run(_Daemon(config, arguments).run([(one, tls if one.tls else None) for one in opened]))
    except SeacanError as error:
        log.critical("failed to start daemon: %s", error.message)
        return 1


def _proxies(config: Configuration) -> None:
    for name, value in (
        ("HTTP_PROXY", config.http_proxy),
        ("HTTPS_PROXY", config.https_proxy),
        ("NO_PROXY", config.no_proxy),
    ):
        if value:
            os.environ[name] = os.environ[name.lower()] = value


@contextlib.contextmanager
def pid_file(path: str) -> Iterator[None]:
    """Hold ``path`` as the daemon's pid file. A file that names no living process is stale and taken over."""
    if not path:
        yield
        return
    os.makedirs(os.path.dirname(path) or ".", mode=0o755, exist_ok=True)
    with contextlib.suppress(FileNotFoundError), open(path, encoding="ascii", errors="replace") as file:
        text = file.read(32).strip()
        other = int(text) if text.isdecimal() else 0
        if other and other != os.getpid() and _alive(other):
            raise System(f"ensure docker is not running or delete {path}: process with PID {other} is still running")
    temporary = f"{path}.{os.getpid()}"
    try:
        with open(temporary, "w", encoding="ascii") as file:
            file.write(str(os.getpid()))
        os.replace(temporary, path)
    except OSError as error:
        raise System(f"cannot write pid file {path}: {error.strerror or error}") from None
    try:
        yield
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)


def _alive(pid: int) -> bool:
    """Whether the process exists and is no zombie."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[0] not in ("Z", "X")
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def _imports() -> Iterator[None]:
    """Import aiohttp without the system's CA certificates.

    At import its client makes two TLS contexts and reads every CA for them: 40 ms and 2 MB, which a server has no use
    for. Code that speaks HTTPS as a client makes its own context, once it needs one.
    """
    names = ("SSL_CERT_FILE", "SSL_CERT_DIR")
    saved = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, os.devnull))
    try:
        yield
    finally:
        for name, value in saved.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


class _Daemon:
    """The running daemon: an engine, the API in front of it, and signals."""

    def __init__(self, config: Configuration, arguments: Sequence[str]) -> None:
        self.config = config
        self.arguments = arguments
        self.signals = 0

    async def run(self, opened: Sequence[tuple[listeners.Listener, object]]) -> int:
        import asyncio

        with _imports():
            from seacan.api.application import serve
            from seacan.engine.engine import Engine
        self.stopping = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._interrupted, number)
        loop.add_signal_handler(signal.SIGHUP, log.info, "Ignored SIGHUP: the daemon is not up yet")
        engine = Engine(self.config.engine)
        await engine.start()
        try:
            await self._serve(serve, engine, opened)
        finally:
            await engine.close()
        log.info("Daemon shutdown complete")
        return 0

    async def _serve(
        self,
        serve: Callable[..., Awaitable[Server]],
        engine: Engine,
        opened: Sequence[tuple[listeners.Listener, object]],
    ) -> None:
        import asyncio

        reload = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGHUP, reload.set)
        with contextlib.suppress(ValueError):
            loop.add_signal_handler(signal.SIGUSR1, _dump_stacks, self.config.engine.exec_root)
        runner = await serve(engine, [(listener.socket, tls) for listener, tls in opened])
        log.info("Daemon has completed initialization")
        for listener, _ in opened:
            log.info("API listen on %s", listener.address)
        _notify("READY=1")
        try:
            async with asyncio.TaskGroup() as tasks:
                reloader = tasks.create_task(self._reload_when(reload, engine))
                preparing = tasks.create_task(_settle(engine))
                await self.stopping.wait()
                reloader.cancel()
                preparing.cancel()
        finally:
            _notify("STOPPING=1")
            await runner.cleanup()

    def _interrupted(self, number: signal.Signals) -> None:
        log.info("Processing signal '%s'", "interrupt" if number == signal.SIGINT else "terminated")
        self.signals += 1
        self.stopping.set()
        if self.signals >= _FORCED_AFTER:
            log.info("Forcing docker daemon shutdown without cleanup; 3 interrupts received")
            os._exit(128 + number)

    async def _reload_when(self, asked: object, engine: Engine) -> None:
        import asyncio

        assert isinstance(asked, asyncio.Event)
        while True:
            await asked.wait()
            asked.clear()
            log.info("Got signal to reload configuration", extra={"fields": {"config-file": self.config.config_file}})
            try:
                options = configuration.reload(engine.options, self.arguments)
                await engine.reconfigure(options)
            except SeacanError as error:
                log.error("Error reloading configuration", extra={"fields": {"error": error.message}})
                continue
            logs.set_level(self.config.log_level, debug=options.debug)
            log.info("Reloaded configuration")


async def _settle(engine: Engine) -> None:
    """What the start has left for when clients are being answered."""
    try:
        await engine.prepare_builds()
    except SeacanError as error:
        log.error("builds are not available: %s", error.message)
    finally:
        # What is loaded by now stays; the collector need not look at it again.
        gc.collect()
        gc.freeze()
        gc.enable()


def _dump_stacks(folder: str) -> None:
    """The stacks of all threads and tasks, into a file: what dockerd does on SIGUSR1."""
    import asyncio
    import faulthandler
    import time

    path = os.path.join(folder, f"goroutine-stacks-{time.strftime('%Y-%m-%dT%H%M%SZ', time.gmtime())}.log")
    with open(path, "w", encoding="utf-8") as file:
        faulthandler.dump_traceback(file, all_threads=True)
        for task in asyncio.all_tasks():
            print(f"\n{task.get_name()}: {task.get_coro()}", file=file)
            task.print_stack(file=file)
    log.info("goroutine stacks written to %s", path)


def _notify(state: str) -> None:
    """Tell systemd (sd_notify(3)) where it waits for that."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as notify:
        try:
            notify.sendto(state.encode(), "\0" + address[1:] if address[0] == "@" else address)
        except OSError as error:
            log.warning("could not notify the service manager: %s", error)


def help_text() -> str:
    """What ``seacan daemon --help`` prints."""
    import textwrap

    lines = ["Usage:  seacan daemon [OPTIONS]", "", "A container engine that speaks the Docker API.", "", "Options:"]
    metavar = {"bool": "", "int": "int", "bytes": "bytes", "ip": "ip", "str": "string"}
    for setting in configuration.SETTINGS:
        short = f"-{setting.short}, " if setting.short else "    "
        head = f"  {short}--{setting.flag} {metavar.get(setting.kind, 'list')}".rstrip()
        text = textwrap.wrap(setting.help, 46)
        lines.append(f"{head:<40} {text[0]}" if len(head) < 40 else head)
        lines += [f"{'':<40} {line}" for line in (text[1:] if len(head) < 40 else text)]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
