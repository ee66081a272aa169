r"""Runs every task on small data: a model, the same network untrained, and baselines.

  python -m dinov3_jax.evals.mini_table --weights W --data DIR

W is whatever `dinov3_jax.load` takes; DIR is what `python -m dinov3_jax.evals.mini` wrote. Tasks
whose data are not there are left out. What is done is kept in DIR/results, and the same command
goes on from there. The baselines are the mean colour of each patch in place of features,
and, where a task has one, a guess without any: copying the first mask, one depth everywhere. The
last row tracks with the true labels of patches as features: no features can do much better.
"""

import argparse
import dataclasses
import os
import pathlib
import sys
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dinov3_jax.evals.backbone import open_model
from dinov3_jax.evals.framing import read_labels
from dinov3_jax.evals.mini_plan import PLANS, Plan
from dinov3_jax.evals.propagation import sample_labels
from dinov3_jax.evals.session import Session
from dinov3_jax.models.variants import build
from dinov3_jax.weights import loading

COLUMNS = ("trained", "untrained", "mean colour", "no features")


class MeanColour(nnx.Module):
  """A stand-in for a backbone: the mean colour of each patch, and of the image."""

  def __init__(self, patch_size: int):
    self.patch_size = patch_size
    self.scale = nnx.Param(jnp.ones(3))  # a model has parameters

  def __call__(self, images: jax.Array) -> dict[str, jax.Array]:
    """`cls` [B, 3] and `patches` [B, N, 3] of images [B, H, W, 3]."""
    count, height, width, _ = images.shape
    p = self.patch_size
    x = images[:, :height // p * p, :width // p * p] * self.scale[...]
    patches = x.reshape(count, height // p, p, width // p, p, 3).mean((2, 4))
    return dict(cls=patches.mean((1, 2)), patches=patches.reshape(count, -1, 3))


class TrueLabels(Session):
  """A session whose features of the frames of a video are their true labels, one-hot."""

  def frames(self, paths: Sequence[os.PathLike], height: int, width: int) -> Iterator[np.ndarray]:
    for path in paths:
      masks = str(pathlib.Path(path).with_suffix(".png")).replace("JPEGImages", "Annotations")
      labels = sample_labels(read_labels(masks), height // self.patch, width // self.patch)
      yield np.eye(8, dtype=np.float32)[labels]


def sessions(weights: str, cache: pathlib.Path) -> dict[str, Session]:
  """A session for each of the models that are compared, by the column that it fills.

  Raises:
    ValueError: what `dinov3_jax.load` raises.
  """
  model, prepare = open_model(weights)
  settings, _ = loading.read(None, loading.locate(None, weights), jnp.float32, None, "teacher")
  trained = Session(model, prepare, pathlib.Path(), cache, progress=False)
  others = dict(untrained=build(settings, rngs=nnx.Rngs(0)))
  others["mean colour"] = MeanColour(trained.patch)
  return dict(trained=trained) | {
    name: dataclasses.replace(trained, model=other) for name, other in others.items()}


def figures(session: Session, plan: Plan, root: pathlib.Path) -> dict[str, float]:
  """The figures of a task on its small data, kept on disk."""
  ledger = session.ledger("mini_table", plan)
  return ledger.get(plan.task, lambda: plan.run(session, root).figures)


def rows(weights: str, root: pathlib.Path) -> Iterator[list[str]]:
  """The rows of the table: task, data, figure, and a number or a dash for each of `COLUMNS`."""
  compared = sessions(weights, root / "results")
  for plan in PLANS:
    if (root / plan.data).is_dir():
      found = {name: figures(session, plan, root) for name, session in compared.items()}
      values = [own[plan.figure] for own in found.values()]
      values.append(found["trained"].get(plan.baseline))
      yield [plan.task, plan.data, plan.figure,
             *("-" if value is None else f"{value:.2f}" for value in values)]
  plan = PLANS[0]
  if (root / plan.data).is_dir():
    trained = compared["trained"]
    oracle = TrueLabels(MeanColour(trained.patch), trained.prepare, root, trained.cache / "oracle")
    yield [plan.task, plan.data, f"{plan.figure}, true labels",
           f"{figures(oracle, plan, root)[plan.figure]:.2f}", *["-"] * (len(COLUMNS) - 1)]


def main() -> int:
  parser = argparse.ArgumentParser(
      prog="python -m dinov3_jax.evals.mini_table", description=__doc__,
      formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--weights", metavar="W", required=True)
  parser.add_argument("--data", metavar="DIR", required=True, type=os.path.expanduser)
  args = parser.parse_args()
  try:
    if not pathlib.Path(args.data).is_dir():
      raise ValueError(f"there is no folder {args.data}: python -m dinov3_jax.evals.mini makes it")
    print(f"| task | data | figure | {' | '.join(COLUMNS)} |", flush=True)
    print(f"|---|---|---|{'--:|' * len(COLUMNS)}", flush=True)
    for row in rows(args.weights, pathlib.Path(args.data)):
      print(f"| {' | '.join(row)} |", flush=True)
  except (OSError, ValueError, ModuleNotFoundError) as error:
    print(f"error: {error}", file=sys.stderr)
    return 1
  return 0


if __name__ == "__main__":
  sys.exit(main())
