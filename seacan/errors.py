"""The engine's errors, typed once, in dockerd's words.

Every layer raises these; :mod:`seacan.api` maps each type to its HTTP status and nothing else does. A message names
the object, the operation and the cause, because it is what the user of ``docker`` reads.
"""

from __future__ import annotations


class SeacanError(Exception):
    """Base of every failure that the engine reports on purpose; ``status`` is the HTTP status dockerd answers with."""

    status = 500

    @property
    def message(self) -> str:
        return str(self)


class InvalidParameter(SeacanError):
    """The request is malformed or contradicts itself (400)."""

    status = 400


class Unauthorized(SeacanError):
    """Credentials are missing or wrong (401)."""

    status = 401


class Forbidden(SeacanError):
    """The operation is understood and refused, whoever asks (403)."""

    status = 403


class NotFound(SeacanError):
    """The named object does not exist (404)."""

    status = 404


class Conflict(SeacanError):
    """The object's state, or another object, stands in the way (409)."""

    status = 409


class NotModified(SeacanError):
    """The object is already in the state asked for (304)."""

    status = 304


class Unsupported(SeacanError):
    """This engine or this host cannot do that (501)."""

    status = 501


class Unavailable(SeacanError):
    """Not now: something the operation needs is not up (503)."""

    status = 503


class System(SeacanError):
    """Something broke below the engine: kernel, disk, another program (500)."""


class RuntimeFailed(SeacanError):
    """The runtime could not start a process in a container.

    ``exit_code`` is what the container is recorded with, by the convention of ``docker run``: 127 the command was not
    found, 126 it was found and could not be executed, 128 anything else.
    """

    def __init__(self, message: str, exit_code: int = 128) -> None:
        super().__init__(message)
        self.exit_code = exit_code

    @property
    def status(self) -> int:  # type: ignore[override]
        return 400 if self.exit_code in (126, 127) else 500
