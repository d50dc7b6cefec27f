"""A WebSocket server that sends back what it gets. Prints its port."""

import asyncio

import websockets


async def echo(connection):
    async for message in connection:
        if message == "leave":
            await connection.close(4001, "as asked")
        else:
            await connection.send(message)


async def main():
    async with websockets.serve(echo, "127.0.0.1", 0, subprotocols=["v1.conformance"]) as server:
        print(server.sockets[0].getsockname()[1], flush=True)
        await asyncio.get_running_loop().create_future()


asyncio.run(main())
