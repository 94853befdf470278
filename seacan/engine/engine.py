"""The engine: one object that owns everything a program or the API can ask for. It knows no HTTP.

    engine = Engine(EngineOptions(data_root=…, exec_root=…))
    await engine.start()        # adopts what is running, rolls back what is half made
    …
    await engine.close()        # containers go on

Its parts are the nouns of Docker: ``images``, ``containers``, ``execs``, ``networks``, ``volumes``, ``events``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from seacan.engine.options import EngineOptions

if TYPE_CHECKING:
    from seacan.engine.containers import Containers
    from seacan.engine.database import Database
    from seacan.engine.events import Events
    from seacan.engine.execs import Execs
    from seacan.images.store import Images
    from seacan.network.networks import Networks
    from seacan.runtime.launcher import Launcher
    from seacan.volumes.volumes import Volumes


class Engine:
    options: EngineOptions
    database: Database
    events: Events
    launcher: Launcher
    images: Images
    networks: Networks
    volumes: Volumes
    containers: Containers
    execs: Execs

    def __init__(self, options: EngineOptions) -> None:
        self.options = options

    async def start(self) -> None:
        """Open the database, start the launcher, adopt what is running and roll back what is half made."""

    async def close(self) -> None:
        """Stop answering for the containers; they go on."""
