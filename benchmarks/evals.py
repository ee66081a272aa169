r"""Evaluations beside the plain way to compute them, in one run on this machine's cores.

  python benchmarks/evals.py

Label propagation against the notebook's algorithm in PyTorch, the grid of linear probes against its
heads one by one, and k-NN against a brute-force search in NumPy. Compilation is not counted; each
figure is the median of three.
"""

import statistics
import time

import jax
import numpy as np
import torch

from dinov3_jax.evals import knn, linear, propagation


def seconds(function) -> float:
  function()
  times = []
  for _ in range(3):
    start = time.perf_counter()
    function()
    times.append(time.perf_counter() - start)
  return statistics.median(times)


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


def main():
  rng = np.random.default_rng(0)
  print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}, torch {torch.__version__}, "
        f"{torch.get_num_threads()} threads of PyTorch")

  settings = propagation.Propagation()
  video = rng.standard_normal((12, 30, 54, 384)).astype(np.float32)
  video = 0.3 * video + rng.standard_normal((1, 30, 54, 384)).astype(np.float32)
  first = np.eye(4, dtype=np.float32)[rng.integers(0, 4, (30, 54))]
  ours = np.stack(list(propagation.propagate(video, first, settings)))
  theirs = propagate_in_torch(video, first, settings)
  a = seconds(lambda: list(propagation.propagate(video, first, settings)))
  b = seconds(lambda: propagate_in_torch(video, first, settings))
  print(f"propagation, 12 frames of 30 x 54 patches, 384 dims: ours {a:.2f} s, PyTorch {b:.2f} s; "
        f"largest difference {abs(ours - theirs).max():.1e}")

  x = rng.standard_normal((4096, 384)).astype(np.float32)
  y = rng.integers(0, 100, 4096)
  every = lambda: linear.train(x, y, steps=64, batch=256)
  single = lambda: [linear.train(x, y, (rate,), (decay,), steps=64, batch=256)
                    for rate in linear.RATES for decay in linear.DECAYS]
  a, b = seconds(every), seconds(single)
  print(f"30 linear probes of 100 classes, 64 steps of 256: together {a:.2f} s, one by one "
        f"{b:.2f} s")

  bank, queries = rng.standard_normal((2, 8192, 384)).astype(np.float32)
  queries, labels = queries[:2048], rng.integers(0, 100, 8192)

  def in_numpy():
    unit = lambda v: v / np.linalg.norm(v, axis=1, keepdims=True)
    cosine = unit(queries) @ unit(bank).T
    return np.argpartition(-cosine, 200, axis=1)[:, :200]

  a = seconds(lambda: knn.knn_votes(bank, labels, queries))
  b = seconds(in_numpy)
  print(f"k-NN, 2,048 queries in 8,192, k to 200: votes {a:.2f} s, NumPy's search alone {b:.2f} s")


if __name__ == "__main__":
  main()
