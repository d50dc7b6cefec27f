"""Calls every method of grpc_server.py at ADDRESS and prints what came back, as one JSON object."""

import json
import sys
import threading
import time

import grpc

channel = grpc.insecure_channel(sys.argv[1])
SERVICE = "/conformance.Calls/"


def pairs(metadata):
    return [f"{key}={value if isinstance(value, str) else value.hex()}" for key, value in metadata or () if key.startswith("x-")]


def unary():
    call = channel.unary_unary(SERVICE + "Unary")
    answer, made = call.with_call(b"hello", metadata=(("x-sent", "as text"), ("x-sent-bin", bytes(range(256)))), timeout=20)
    return f"{answer.decode()} {pairs(made.initial_metadata())} {pairs(made.trailing_metadata())} {made.code()}"


def large():
    answer = channel.unary_unary(SERVICE + "Unary")(b"x" * 3_000_000, timeout=20)
    return f"{len(answer)} bytes"


def client_stream():
    return channel.stream_unary(SERVICE + "ClientStream")(iter([b"a", b"b", b"c"]), timeout=20).decode()


def server_stream():
    call = channel.unary_stream(SERVICE + "ServerStream")(b"200", timeout=20)
    return f"{len(list(call))} messages, {call.code()}"


def bidi():
    """Each message is sent when the answer to the one before has come: nothing may wait for more."""
    turn, saw = threading.Semaphore(1), []

    def requests():
        for word in (b"one", b"two", b"three"):
            turn.acquire()
            yield word

    for answer in channel.stream_stream(SERVICE + "Bidi")(requests(), timeout=20):
        saw.append(answer.decode())
        turn.release()
    return " ".join(saw)


def error(call):
    try:
        call()
    except grpc.RpcError as refused:
        return f"{refused.code()} {refused.details()!r} {pairs(refused.trailing_metadata())}"
    return "no error"


def fail():
    return error(lambda: channel.unary_unary(SERVICE + "Fail")(b"", timeout=20))


def unknown():
    return error(lambda: channel.unary_unary(SERVICE + "Nothing")(b"", timeout=20))


def deadline_told():
    return channel.unary_unary(SERVICE + "Slow")(b"0", timeout=20).decode()[:3] in ("20.", "19.")


def deadline_passed():
    begun = time.monotonic()
    said = error(lambda: channel.unary_unary(SERVICE + "Slow")(b"30", timeout=0.3))
    return f"{said.split()[0]} in time: {0.3 <= time.monotonic() - begun < 5}"


def heard_after(begin):
    """Milliseconds from a cancellation until the server hears of it: the median of five."""
    ask, took = channel.unary_unary(SERVICE + "LastLeft"), []
    for _ in range(5):
        before = ask(b"", timeout=20)
        call = begin()
        time.sleep(0.1)
        cancelled = time.monotonic()
        call.cancel()
        while (heard := ask(b"", timeout=20)) == before:
            if time.monotonic() - cancelled > 10:
                return None
        took.append((float(heard) - cancelled) * 1000)
    return sorted(took)[2]


def streaming():
    call = channel.unary_stream(SERVICE + "Tokens")(b"", timeout=60)
    next(call)
    return call


cells = {
    "unary, metadata both ways, `-bin` included, and trailers": unary(),
    "unary, 3 MB each way": large(),
    "client streaming": client_stream(),
    "server streaming, 200 messages": server_stream(),
    "bidirectional streaming, message by message": bidi(),
    "an error with its text and its trailers": fail(),
    "a method that is not there": unknown(),
    "`grpc-timeout` reaches the server": str(deadline_told()),
    "a deadline that passes": deadline_passed(),
}
leaves = {
    "a gRPC call in progress is cancelled": heard_after(lambda: channel.unary_unary(SERVICE + "Slow").future(b"30", timeout=60)),
    "a gRPC stream in progress is cancelled": heard_after(streaming),
}
print(json.dumps({"cells": cells, "leaves": leaves}))
