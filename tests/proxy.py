"""An HTTP proxy for tests: ``python -m tests.proxy ADDRESS:PORT LOG USER:PASSWORD|- [NAME:PORT=ADDRESS:PORT …]``.

It writes a line for each request to LOG, and reaches the named places at the addresses given instead.
"""

from __future__ import annotations

import asyncio
import base64
import sys
from urllib.parse import urlsplit


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while content := await reader.read(1 << 16):
            writer.write(content)
            await writer.drain()
    except ConnectionError:
        pass
    finally:
        writer.close()


async def _serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    method, target, version = lines[0].split(" ")
    with open(LOG, "a") as log:
        log.write(f"{method} {target}\n")
    told = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
    if USER != "-" and told.get("proxy-authorization") != "Basic " + base64.b64encode(USER.encode()).decode():
        writer.write(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        writer.close()
        return
    place = target if method == "CONNECT" else urlsplit(target).netloc
    host, _, port = PLACES.get(place, place).rpartition(":")
    try:
        there, back = await asyncio.open_connection(host, int(port))
    except OSError:
        writer.write(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        writer.close()
        return
    if method == "CONNECT":
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
    else:
        parts = urlsplit(target)
        path = parts.path + (f"?{parts.query}" if parts.query else "")
        kept = [line for line in lines[1:-2] if not line.lower().startswith(("proxy-", "connection:"))]
        back.write("\r\n".join([f"{method} {path} {version}", *kept, "Connection: close", "", ""]).encode())
    await asyncio.gather(_copy(reader, back), _copy(there, writer))


async def _main() -> None:
    address, _, port = sys.argv[1].rpartition(":")
    server = await asyncio.start_server(_serve, address, int(port))
    print("listening", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    LOG, USER = sys.argv[2:4]
    PLACES = dict(pair.split("=") for pair in sys.argv[4:])
    asyncio.run(_main())
