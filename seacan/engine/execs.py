"""Further processes in running containers: `docker exec`."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import struct
from typing import TYPE_CHECKING, Any

from seacan.engine import oci, users
from seacan.engine.config import ExecConfig
from seacan.engine.container import Container
from seacan.engine.names import new_id
from seacan.engine.streams import Client, Connect, detach_keys
from seacan.errors import Conflict, InvalidParameter, NotFound, RuntimeFailed, SeacanError
from seacan.runtime.bundle import Exit

if TYPE_CHECKING:
    from seacan.engine.engine import Engine

REMEMBERED = 600.0
"""Seconds for which an exec that has ended can be inspected; dockerd forgets after five to ten minutes."""
PREFIX = "OCI runtime exec failed: exec failed: "


class Exec:
    """One exec instance: configured, then started once, then remembered until its container ends."""

    def __init__(self, container: Container, config: ExecConfig, keys: bytes) -> None:
        self.id = new_id()
        self.container = container
        self.config = config
        self.keys = keys
        self.pid = 0
        self.started = False
        self.running = False
        self.exit_code: int | None = None
        self.ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    @property
    def entrypoint(self) -> str:
        return (self.config.cmd or [""])[0]

    @property
    def arguments(self) -> list[str]:
        return (self.config.cmd or [])[1:]

    def inspect(self) -> dict[str, Any]:
        """Docker's ExecInspect."""
        process: dict[str, Any] = {
            "tty": self.config.tty,
            "entrypoint": self.entrypoint,
            "arguments": self.arguments,
            "privileged": self.config.privileged,
        }
        if self.config.user:
            process["user"] = self.config.user
        return {
            "ID": self.id,
            "Running": self.running,
            "ExitCode": self.exit_code,
            "ProcessConfig": process,
            "OpenStdin": self.config.attach_stdin,
            "OpenStderr": self.config.attach_stderr,
            "OpenStdout": self.config.attach_stdout,
            "CanRemove": False,
            "ContainerID": self.container.id,
            "DetachKeys": base64.b64encode(self.keys if self.config.detach_keys else b"").decode(),
            "Pid": self.pid,
        }


class Execs:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._by_id: dict[str, Exec] = {}

    def get(self, id: str) -> Exec:
        """Raises NotFound."""
        found = self._by_id.get(id)
        if found is None:
            raise NotFound(f"No such exec instance: {id}")
        return found

    def create(self, reference: str, config: ExecConfig, *, health_check: bool = False) -> Exec:
        """Register a command to be run in a running container."""
        if not config.cmd:
            raise InvalidParameter("No exec command specified")
        container = self._engine.containers.get(reference)
        container.require_running()
        if container.state.paused:
            raise Conflict(f"Container {reference} is paused, unpause the container before exec")
        if config.user:  # now rather than at the start: this answer can still carry an error
            users.resolve(config.user, self._engine.snapshots.rootfs(container.id))
        try:
            keys = b"" if health_check else detach_keys(config.detach_keys)
        except InvalidParameter as error:
            raise InvalidParameter(f"Invalid escape keys ({config.detach_keys}) provided") from error
        exec = Exec(container, config, keys)
        self._by_id[exec.id] = exec
        container.execs[exec.id] = exec
        self._emit(exec, f"exec_create: {exec.entrypoint} {' '.join(exec.arguments)}")
        return exec

    async def start(
        self,
        id: str,
        connect: Connect | None = None,
        *,
        multiplexed: bool = True,
        console_size: tuple[int, int] | None = None,
    ) -> Exec:
        """Run a registered command.

        With ``connect`` its streams are joined to that client; whatever goes wrong after it was called is written
        there, as dockerd does; ``multiplexed`` is the client's choice, whether or not there is a terminal. Without
        it runs detached, and failures are raised.
        """
        exec = self.get(id)
        container = exec.container
        if connect is None:
            await self._run(exec, None, console_size)
            return exec
        container.require_running()
        client = await connect(multiplexed)
        client.stdin = client.stdin and exec.config.attach_stdin
        client.stdout, client.stderr = exec.config.attach_stdout, exec.config.attach_stderr
        client.detach_keys = exec.keys
        copy = os.dup(client.fd)
        try:
            await self._run(exec, client, console_size)
        except SeacanError as error:
            await asyncio.to_thread(_tell, copy, error.message, multiplexed)
        finally:
            client.close()
            os.close(copy)
        return exec

    async def _run(self, exec: Exec, client: Client | None, console_size: tuple[int, int] | None) -> None:
        container = exec.container
        if exec.exit_code is not None:
            raise Conflict(f"exec command {exec.id} has already run")
        if exec.started:
            raise Conflict(f"exec command {exec.id} is already running")
        task = container.require_running()
        if container.state.paused:
            raise Conflict(f"Container {container.id} is paused, unpause the container before exec")
        exec.started = True
        self._emit(exec, f"exec_start: {exec.entrypoint} {' '.join(exec.arguments)}")
        try:
            process = await oci.exec_process(self._engine, container, exec.config, console_size)
            if client is None:
                exec.pid = await task.exec(exec.id, process, stdin=exec.config.attach_stdin)
            else:
                exec.pid = await task.exec(
                    exec.id,
                    process,
                    client.fd,
                    stdin=client.stdin,
                    stdout=client.stdout,
                    stderr=client.stderr,
                    multiplexed=client.multiplexed,
                    detach_keys=client.detach_keys,
                    pending=client.pending,
                )
        except RuntimeFailed as error:
            message = str(error)
            if message.lower().endswith("is a directory"):
                message += ": permission denied"
            self._fail(exec, error.exit_code)
            raise RuntimeFailed(PREFIX + message, error.exit_code) from error
        except SeacanError:
            self._fail(exec, 126)
            raise
        if exec.exit_code is None:
            exec.running = True

    def _fail(self, exec: Exec, code: int) -> None:
        exec.exit_code = code
        exec.running = False
        if not exec.ended.done():
            exec.ended.set_result(code)

    def ended(self, container: Container, id: str, exit: Exit) -> None:
        """The shim says that an exec has ended."""
        exec = container.execs.get(id)
        if exec is None or exec.exit_code is not None:
            return
        exec.running = False
        exec.exit_code = exit.exit_code
        self._engine.events.emit(
            "container",
            "exec_die",
            container.id,
            container.attributes(execID=id, exitCode=str(exit.exit_code)),
        )
        if not exec.ended.done():
            exec.ended.set_result(exit.exit_code)
        asyncio.get_running_loop().call_later(REMEMBERED, self.forget, exec)

    def container_ended(self, container: Container) -> None:
        """Execs do not outlive their container; for a while they can still be looked at."""
        for exec in container.execs.values():
            asyncio.get_running_loop().call_later(REMEMBERED, self.forget, exec)
            exec.running = False
            if exec.exit_code is None:
                exec.exit_code = 137
            if not exec.ended.done():
                exec.ended.set_result(exec.exit_code)
        container.execs.clear()

    def forget(self, exec: Exec) -> None:
        """Drop an exec that has served (a health probe)."""
        self._by_id.pop(exec.id, None)
        exec.container.execs.pop(exec.id, None)

    async def resize(self, id: str, height: int, width: int) -> None:
        exec = self.get(id)
        exec.container.require_running()
        if not exec.running:
            raise InvalidParameter("exec process is not started")
        await exec.container.require_running().resize(height, width, exec_id=id)

    def _emit(self, exec: Exec, action: str) -> None:
        self._engine.containers.emit(exec.container, action, execID=exec.id)


def _tell(fd: int, message: str, multiplexed: bool) -> None:
    data = message.encode() + b"\r\n"
    if multiplexed:
        data = struct.pack(">BxxxI", 1, len(data)) + data
    os.set_blocking(fd, True)
    with contextlib.suppress(OSError):
        while data:
            data = data[os.write(fd, data) :]
