"""A gRPC server with one method of each kind. Prints its port; messages are plain bytes."""

import concurrent.futures
import time

import grpc

left = []


def unary(request, context):
    context.send_initial_metadata((("x-seen", dict(context.invocation_metadata()).get("x-sent", "")),))
    binary = dict(context.invocation_metadata()).get("x-sent-bin", b"")
    context.set_trailing_metadata((("x-trailer", "yes"), ("x-echo-bin", binary)))
    return request + b"!"


def client_stream(requests, context):
    return b"+".join(requests)


def server_stream(request, context):
    for number in range(int(request)):
        yield b"%d" % number


def bidi(requests, context):
    for request in requests:
        yield request + b"?"


def fail(request, context):
    context.set_trailing_metadata((("x-why", "asked for"),))
    context.abort(grpc.StatusCode.FAILED_PRECONDITION, "as asked: ä")


def slow(request, context):
    """Answers after so many seconds, unless the client has left; says how long the client wanted to wait."""
    context.add_callback(lambda: left.append((time.monotonic(), context.is_active())))
    wanted = context.time_remaining()
    until = time.monotonic() + float(request)
    while time.monotonic() < until and context.is_active():
        time.sleep(0.002)
    return b"%.1f" % wanted if wanted is not None else b"for ever"


def tokens(request, context):
    """A stream that goes on until its client leaves."""
    context.add_callback(lambda: left.append((time.monotonic(), True)))
    while context.is_active():
        yield b"token"
        time.sleep(0.002)


def last_left(request, context):
    return repr(left[-1][0]).encode() if left else b""


METHODS = {
    "Unary": grpc.unary_unary_rpc_method_handler(unary),
    "ClientStream": grpc.stream_unary_rpc_method_handler(client_stream),
    "ServerStream": grpc.unary_stream_rpc_method_handler(server_stream),
    "Bidi": grpc.stream_stream_rpc_method_handler(bidi),
    "Fail": grpc.unary_unary_rpc_method_handler(fail),
    "Slow": grpc.unary_unary_rpc_method_handler(slow),
    "Tokens": grpc.unary_stream_rpc_method_handler(tokens),
    "LastLeft": grpc.unary_unary_rpc_method_handler(last_left),
}

server = grpc.server(concurrent.futures.ThreadPoolExecutor(8))
server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("conformance.Calls", METHODS),))
port = server.add_insecure_port("127.0.0.1:0")
server.start()
print(port, flush=True)
server.wait_for_termination()
