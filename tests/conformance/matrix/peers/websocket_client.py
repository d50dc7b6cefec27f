"""Talks to websocket_server.py at ADDRESS and prints what came back, as one JSON object."""

import asyncio
import json
import sys

import websockets


async def main():
    uri, cells = f"ws://{sys.argv[1]}/chat", {}
    async with websockets.connect(uri, subprotocols=["v1.conformance"], open_timeout=20) as connection:
        cells["the handshake, with a subprotocol and an extension"] = f"{connection.subprotocol} {[e.name for e in connection.protocol.extensions]}"
        await connection.send("héllo")
        await connection.send(bytes(range(256)))
        text, binary = await connection.recv(), await connection.recv()
        cells["text and binary"] = f"{text} {binary == bytes(range(256))}"
        large = "x" * 900_000
        await connection.send([large[:5], large[5:]])
        cells["a large message in fragments"] = str(await connection.recv() == large)
        pong = await connection.ping()
        await asyncio.wait_for(pong, 20)
        cells["ping and pong"] = "answered"
        await connection.send("leave")
        try:
            await connection.recv()
        except websockets.ConnectionClosed as closed:
            cells["the server closes, with code and reason"] = f"{closed.rcvd.code} {closed.rcvd.reason}"
    async with websockets.connect(uri, subprotocols=["v1.conformance"], open_timeout=20) as connection:
        await connection.close(1000, "done")
        cells["the client closes"] = f"{connection.close_code} {connection.close_reason}"
    print(json.dumps({"cells": cells}))


asyncio.run(main())
