"""Asks Triton at ADDRESS by gRPC and prints what came back, as one JSON object. Messages are written by hand: two fields need no compiler."""

import json
import struct
import sys

import grpc

channel = grpc.insecure_channel(sys.argv[1])
SERVICE = "/inference.GRPCInferenceService/"


def field(number, value):
    return bytes([number << 3 | 2, len(value)]) + value


def asked(model):
    tensor = field(1, b"x") + field(2, b"FP32") + field(3, bytes([1, 4]))
    return field(1, model) + field(3, b"7") + field(5, tensor) + field(7, struct.pack("<4f", 1, 2, 3, 4))


def infer():
    answer = channel.unary_unary(SERVICE + "ModelInfer")(asked(b"double"), timeout=20)
    return f"{answer[-16:].hex()} of {len(answer)} bytes"


def streamed():
    answers = channel.stream_stream(SERVICE + "ModelStreamInfer")(iter([asked(b"double")] * 5), timeout=20)
    return " ".join(answer[-16:].hex() for answer in answers)


def unknown():
    try:
        channel.unary_unary(SERVICE + "ModelInfer")(asked(b"nothing"), timeout=20)
    except grpc.RpcError as refused:
        return f"{refused.code()} {refused.details()}"
    return "no error"


cells = {
    "gRPC: live": channel.unary_unary(SERVICE + "ServerLive")(b"", timeout=20).hex(),
    "gRPC: inference": infer(),
    "gRPC: five inferences by one stream": streamed(),
    "gRPC: an unknown model": unknown(),
}
print(json.dumps({"cells": cells}))
