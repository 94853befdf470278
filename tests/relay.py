"""A relay before a registry: ``python -m tests.relay ADDRESS:PORT REGISTRY:PORT FOLDER``.

It writes ``METHOD PATH RANGE`` of each request to ``FOLDER/requests``. While ``FOLDER/hold`` exists, no connection
carries more than the bytes that the file says in either direction: it stands still in the middle of a blob, and
there is ``FOLDER/held``.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from pathlib import Path


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    carried = 0
    try:
        while content := await reader.read(1 << 16):
            carried += len(content)
            while _held(carried):
                if writer.transport.is_closing():
                    return
                await asyncio.sleep(0.02)
            writer.write(content)
            await writer.drain()
    except ConnectionError:
        pass
    finally:
        writer.close()


def _held(carried: int) -> bool:
    with contextlib.suppress(FileNotFoundError):
        if carried > int((FOLDER / "hold").read_text()):
            (FOLDER / "held").touch()
            return True
    return False


async def _serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        first = await reader.readexactly(1)
        if first == b"\x16":  # TLS, which the client tries before it speaks plainly
            writer.close()
            return
        lines = (first + await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()
        return
    method, target, _ = lines[0].split(" ")
    told = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
    with (FOLDER / "requests").open("a") as log:
        log.write(f"{method} {target} {told.get('range', '-')}\n")
    host, _, port = sys.argv[2].rpartition(":")
    there, back = await asyncio.open_connection(host, int(port))
    kept = [line for line in lines[:-2] if not line.lower().startswith("connection:")]
    back.write("\r\n".join([*kept, "Connection: close", "", ""]).encode())
    await asyncio.gather(_copy(reader, back), _copy(there, writer))


async def _main() -> None:
    address, _, port = sys.argv[1].rpartition(":")
    server = await asyncio.start_server(_serve, address, int(port))
    print("listening", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    FOLDER = Path(sys.argv[3])
    asyncio.run(_main())
