r"""Evaluations beside the plain way to compute them, in one run on this machine's cores.

  python benchmarks/evals.py

Label propagation against the notebook's algorithm in PyTorch, the grid of linear probes against its
heads one by one and against the two products of matrices that each of its steps needs, k-NN against
NumPy, scikit-learn and faiss, and logistic regression against scikit-learn; the last two where they
are installed. The ways take turns; compilation is not counted. Each figure is the median of five,
in seconds and in seconds of all cores together, which other work on the machine disturbs less, and
how many times those of the first way. It takes about one minute.
"""

import importlib.util
import os
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
import torch

from dinov3_jax.evals import knn, linear, logistic, propagation

ROUNDS = 5


def compare(what: str, **ways):
  """Runs each way once, then all in turn, and prints their times."""
  for way in ways.values():
    way()
  times = {name: [] for name in ways}
  for _ in range(ROUNDS):
    for name, way in ways.items():
      wall, cpu = time.perf_counter(), time.process_time()
      way()
      times[name].append((time.perf_counter() - wall, time.process_time() - cpu))
  medians = {name: [statistics.median(x) for x in zip(*own)] for name, own in times.items()}
  (_, first), *_ = medians.values()
  for name, (wall, cpu) in medians.items():
    print(f"{what}: {name.replace('_', ' ')} {wall:.2f} s, of all cores {cpu:.2f} s, "
          f"{cpu / first:.2f} times; load {os.getloadavg()[0]:.0f}", flush=True)


def propagate_in_torch(features, first, settings):
  """Frame by frame, the similarity to the whole context at once, ties at the last place kept."""
  rows, columns, labels = first.shape
  near = torch.from_numpy(propagation.neighbourhood(rows, columns, settings.radius, settings.shape))
  x = torch.nn.functional.normalize(torch.from_numpy(features).flatten(1, 2), dim=-1)
  masks = [torch.from_numpy(first).reshape(-1, labels)]
  for i in range(1, len(x)):
    past = list(range(max(1, i - settings.context), i))
    context = torch.cat([x[0], *(x[j] for j in past)])
    cosine = x[i] @ context.T
    cosine[~near.repeat(1, 1 + len(past))] = -torch.inf
    least = cosine.topk(settings.neighbours).values[:, -1:]
    cosine[cosine < least] = -torch.inf
    weights = (cosine / settings.temperature).softmax(-1)
    masks.append(weights @ torch.cat([masks[0], *(masks[j] for j in past)]))
  return torch.stack(masks).reshape(-1, rows, columns, labels).numpy()


def heads_in_torch(x, y, classes, steps, batch):
  """Every head of the grid by itself, as one writes it in PyTorch."""
  x, y = torch.from_numpy(x), torch.from_numpy(y)
  order = torch.randint(len(x), (steps, batch), generator=torch.Generator().manual_seed(0))
  for rate in linear.RATES:
    for decay in linear.DECAYS:
      head = torch.nn.Linear(x.shape[1], classes)
      optimizer = torch.optim.SGD(head.parameters(), rate, linear.MOMENTUM, weight_decay=decay)
      schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
      for places in order:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(head(x[places]), y[places]).backward()
        optimizer.step()
        schedule.step()


@jax.jit
def products(weights, batches):
  """What no way to take the steps of a grid can do without: its logits and its gradient."""
  def step(weights, x):
    logits = jnp.matmul(x, weights, precision="float32")
    return weights + 1e-6 * jnp.matmul(x.T, logits, precision="float32"), logits[0, 0]

  return jax.lax.scan(step, weights, batches)


def main():
  rng = np.random.default_rng(0)
  print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}, torch {torch.__version__}, "
        f"{torch.get_num_threads()} threads of PyTorch, {os.cpu_count()} cores")

  settings = propagation.Propagation()
  video = rng.standard_normal((12, 30, 54, 384)).astype(np.float32)
  video = 0.3 * video + rng.standard_normal((1, 30, 54, 384)).astype(np.float32)
  first = np.eye(4, dtype=np.float32)[rng.integers(0, 4, (30, 54))]
  ours = np.stack(list(propagation.propagate(video, first, settings)))
  theirs = propagate_in_torch(video, first, settings)
  print(f"propagation: largest difference {abs(ours - theirs).max():.1e}")
  compare("propagation, 12 frames of 30 x 54 patches, 384 dims",
          ours=lambda: list(propagation.propagate(video, first, settings)),
          PyTorch=lambda: propagate_in_torch(video, first, settings))

  x = rng.standard_normal((4096, 384)).astype(np.float32)
  batches = x[rng.integers(0, len(x), (64, 256))]
  for classes in (10, 100):
    y = rng.integers(0, classes, 4096)
    heads = len(linear.RATES) * len(linear.DECAYS)
    weights = 0.01 * rng.standard_normal((384, heads * classes)).astype(np.float32)
    compare(f"30 linear probes of {classes} classes, 64 steps of 256",
            together=lambda y=y: linear.train(x, y, steps=64, batch=256),
            one_by_one=lambda y=y: [
              linear.train(x, y, (rate,), (decay,), steps=64, batch=256)
              for rate in linear.RATES for decay in linear.DECAYS],
            one_by_one_in_PyTorch=lambda y=y, c=classes: heads_in_torch(x, y, c, 64, 256),
            its_two_products_alone=lambda w=weights: jax.block_until_ready(products(w, batches)))

  bank, queries = rng.standard_normal((2, 8192, 384)).astype(np.float32)
  queries, labels = queries[:2048], rng.integers(0, 100, 8192)
  unit = lambda v: v / np.linalg.norm(v, axis=1, keepdims=True)
  ways = dict(votes=lambda: knn.knn_votes(bank, labels, queries),
              NumPy=lambda: np.argpartition(-(unit(queries) @ unit(bank).T), 200, axis=1)[:, :200])
  if importlib.util.find_spec("faiss"):
    import faiss

    def in_faiss():
      index = faiss.IndexFlatIP(384)
      index.add(unit(bank))
      index.search(unit(queries), 200)

    ways["faiss"] = in_faiss
  if importlib.util.find_spec("sklearn"):
    from sklearn.neighbors import NearestNeighbors
    ways["scikit_learn"] = lambda: NearestNeighbors(
        n_neighbors=200, metric="cosine", algorithm="brute").fit(bank).kneighbors(queries)
  compare("k-NN, 2,048 queries in 8,192, k to 200 (others: the search alone)", **ways)

  centres = rng.standard_normal((20, 128))
  y = np.arange(1000) % 20
  x = centres[y] + 2 * rng.standard_normal((1000, 128))
  ways = dict(ours=lambda: [logistic.fit(x, y, c) for c in (1e-3, 1e-1, 10)])
  if importlib.util.find_spec("sklearn"):
    from sklearn.linear_model import LogisticRegression
    ways["scikit_learn"] = lambda: [
      LogisticRegression(C=c, max_iter=logistic.ITERATIONS, tol=logistic.TOLERANCE).fit(x, y)
      for c in (1e-3, 1e-1, 10)]
  compare("logistic regression, 1,000 images of 20 classes, 128 dims, three C", **ways)


if __name__ == "__main__":
  main()
