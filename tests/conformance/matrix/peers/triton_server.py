"""Triton with a model that doubles what it gets, at the ports HTTP and GRPC."""

import signal
import sys

import numpy
from pytriton.decorators import batch
from pytriton.model_config import ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig


@batch
def double(x):
    return {"y": x * 2}


# Triton ends, and takes its shared memory with it, when this block is left.
signal.signal(signal.SIGTERM, lambda *_: sys.exit())
ports = TritonConfig(http_address="127.0.0.1", http_port=int(sys.argv[1]), grpc_address="127.0.0.1", grpc_port=int(sys.argv[2]), allow_metrics=False)
with Triton(config=ports) as triton:
    named = lambda name: [Tensor(name=name, dtype=numpy.float32, shape=(4,))]
    triton.bind("double", double, inputs=named("x"), outputs=named("y"), config=ModelConfig(max_batch_size=8))
    triton.serve()
