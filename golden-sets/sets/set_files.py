"""Writes a golden set in the ONNX model-zoo layout: model.onnx, test_data_set_N/, golden.yaml. Shared by the sets' train.py scripts."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper

DATATYPES = {np.dtype(np.int64): "INT64", np.dtype(np.float32): "FP32"}


def session(path, threads=1):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def save_model(graph, path, opset=17):
    """Checks the graph and writes it."""
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)], producer_name="steadfast")
    model.ir_version = 9
    onnx.checker.check_model(model, full_check=True)
    path.write_bytes(model.SerializeToString(deterministic=True))


def write_set(folder, *, model, description, shapes, compare, samples):
    """samples: (name, tags, {input: array}); outputs are what ONNX Runtime answers, and what every later check is held against."""
    folder = Path(folder)
    for old in folder.glob("test_data_set_*"):
        shutil.rmtree(old)
    run = session(folder / "model.onnx")
    inputs, outputs = ([port.name for port in ports] for ports in (run.get_inputs(), run.get_outputs()))
    types, listed = {}, []
    for number, (name, tags, feed) in enumerate(samples):
        directory = folder / f"test_data_set_{number}"
        directory.mkdir()
        answers = dict(zip(outputs, run.run(outputs, feed)))
        for kind, names, arrays in (("input", inputs, feed), ("output", outputs, answers)):
            for index, port in enumerate(names):
                types[port] = DATATYPES[arrays[port].dtype]
                tensor = numpy_helper.from_array(np.ascontiguousarray(arrays[port]), port)
                (directory / f"{kind}_{index}.pb").write_bytes(tensor.SerializeToString(deterministic=True))
        listed.append(f"  - {{name: {name}, directory: {directory.name}, tags: [{', '.join(tags)}]}}")
    digest = hashlib.sha256((folder / "model.onnx").read_bytes()).hexdigest()
    lines = [f"model: {model}", 'version: "1"', "description: >-", *(f"  {line}" for line in description.strip().splitlines())]
    lines += [f'onnx: {{file: model.onnx, digest: "sha256:{digest}"}}', "inputs:"]
    lines += [f"  - {{name: {port}, datatype: {types[port]}, shape: {json.dumps(shapes[port])}}}" for port in inputs]
    lines += ["outputs:"]
    lines += [f"  - {{name: {port}, datatype: {types[port]}, shape: {json.dumps(shapes[port])}, compare: {compare[port]}}}" for port in outputs]
    lines += ["samples:", *listed]
    (folder / "golden.yaml").write_text("\n".join(lines) + "\n")


def noise(folder, samples, reference, output, answers=None):
    """Largest difference of `output` between one thread, two threads, and `reference` (the same arithmetic in float64).

    `answers` picks what of the reference belongs to the model's answer."""
    one, two = session(Path(folder) / "model.onnx"), session(Path(folder) / "model.onnx", 2)
    threads = double = 0.0
    for _, _, feed in samples:
        answer = one.run(None, feed)
        named = dict(zip([port.name for port in one.get_outputs()], answer))
        threads = max(threads, float(np.abs(named[output] - two.run([output], feed)[0]).max()))
        exact = reference(feed) if answers is None else answers(reference(feed), named)
        double = max(double, float(np.abs(named[output] - exact).max()))
    return threads, double
