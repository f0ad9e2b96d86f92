"""Forwards a port on 127.0.0.1 to a Unix socket, for clients that speak TCP only.

Prints the port, and runs until it is ended: forward.py SOCKET
"""

import asyncio
import sys


async def pump(reader, writer):
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass
    finally:
        writer.close()


async def forward(socket, reader, writer):
    try:
        to_read, to_write = await asyncio.open_unix_connection(socket)
    except OSError:
        writer.close()
        return
    await asyncio.gather(pump(reader, to_write), pump(to_read, writer))


async def main(socket):
    server = await asyncio.start_server(lambda r, w: forward(socket, r, w), "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


asyncio.run(main(sys.argv[1]))
