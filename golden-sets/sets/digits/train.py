"""Trains a small classifier of hand-written digits on data that scikit-learn bundles, and writes its golden set. Deterministic.

    python3 -m venv /tmp/digits && /tmp/digits/bin/pip install -r requirements.txt
    /tmp/digits/bin/python train.py                      # the set
    /tmp/digits/bin/python train.py --sklearn FILE       # only the fitted scikit-learn pipeline, for servers that take that

The pipeline (scaling, one hidden layer) is written out in plain ONNX operators, so that every engine can compute it.
"""

import os

os.environ.update(OPENBLAS_NUM_THREADS="1", OMP_NUM_THREADS="1")  # sums in one order: the same files on one kind of processor

import argparse
import sys
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

HERE = Path(__file__).resolve().parent
SEED, HIDDEN, TOLERANCE = 7, 48, 1e-5


def fit():
    pixels, labels = load_digits(return_X_y=True)
    split = train_test_split(pixels, labels, test_size=0.25, random_state=SEED, stratify=labels)
    pipeline = make_pipeline(StandardScaler(), MLPClassifier([HIDDEN], alpha=1.0, max_iter=1000, random_state=SEED))
    return pipeline.fit(split[0], split[2]), split


def graph(pipeline):
    from onnx import TensorProto, helper, numpy_helper

    scaler, network = pipeline[0], pipeline[1]
    constants = {
        "mean": scaler.mean_,
        "scale": scaler.scale_,
        "hidden_weights": network.coefs_[0],
        "hidden_bias": network.intercepts_[0],
        "class_weights": network.coefs_[1],
        "class_bias": network.intercepts_[1],
    }
    node = helper.make_node
    return helper.make_graph(
        [
            node("Sub", ["pixels", "mean"], ["centred"]),
            node("Div", ["centred", "scale"], ["scaled"]),
            node("Gemm", ["scaled", "hidden_weights", "hidden_bias"], ["hidden"]),
            node("Relu", ["hidden"], ["active"]),
            node("Gemm", ["active", "class_weights", "class_bias"], ["logits"]),
            node("Softmax", ["logits"], ["probabilities"], axis=1),
        ],
        "digits",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["batch", 64])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", 10])],
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in constants.items()],
    )


def main():
    arguments = argparse.ArgumentParser(description="Trains the digits classifier and writes its golden set.")
    arguments.add_argument("--sklearn", metavar="FILE", help="write only the fitted scikit-learn pipeline (joblib)")
    arguments = arguments.parse_args()
    pipeline, (seen, unseen, seen_labels, labels) = fit()
    if arguments.sklearn:
        import joblib

        joblib.dump(pipeline, arguments.sklearn)
        return

    sys.path.insert(0, str(HERE.parent))
    from set_files import noise, save_model, session, write_set

    save_model(graph(pipeline), HERE / "model.onnx")
    run = session(HERE / "model.onnx")
    probabilities = run.run(["probabilities"], {"pixels": unseen.astype(np.float32)})[0]
    right = probabilities.argmax(axis=1) == labels

    second = np.sort(probabilities, axis=1)[:, -2]
    margin = probabilities.max(axis=1) - second
    feed = lambda *rows: {"pixels": unseen[list(rows)].astype(np.float32)}
    narrow = np.argsort(margin, kind="stable")[:20]
    plain = np.random.default_rng(SEED).choice(np.argsort(margin, kind="stable")[20:], 48, replace=False)
    samples = [(f"digit-{labels[row]}-{row}", ["plain"], feed(row)) for row in plain[:40]]
    samples += [(f"narrow-{row}", ["narrow-margin"], feed(row)) for row in narrow]
    samples += [("batch-8", ["batch"], feed(*plain[40:])), ("blank", ["edge"], {"pixels": np.zeros((1, 64), np.float32)})]

    threads, double = noise(HERE, samples, lambda inputs: pipeline.predict_proba(inputs["pixels"].astype(np.float64)), "probabilities")
    assert 4 * max(threads, double) <= TOLERANCE, (threads, double)
    baseline = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)).fit(seen, seen_labels).score(unseen, labels)
    majority = np.mean(labels == np.bincount(seen_labels).argmax())
    (HERE / "QUALITY.md").write_text(f"""# Quality of the digits classifier

Measured by `train.py` on the committed `model.onnx`, over {len(labels)} images that it has not seen (a quarter, stratified).

| | accuracy |
|---|---|
| this model (one hidden layer of {HIDDEN}) | {right.mean():.4f} |
| logistic regression | {baseline:.4f} |
| always the most frequent digit | {majority:.4f} |

Largest difference of a probability over all samples: one thread against two {threads:.1e}, ONNX Runtime in float32 against scikit-learn in float64 {double:.1e}.
Tolerance in `golden.yaml`: 1e-5.
""")
    write_set(
        HERE,
        model="digits",
        description="Probabilities of the ten digits for 8 by 8 images, pixels from 0 to 16, row by row.",
        shapes={"pixels": [-1, 64], "probabilities": [-1, 10]},
        compare={"probabilities": '{classification: {absolute: "1e-5"}}'},
        samples=samples,
    )


if __name__ == "__main__":
    main()
