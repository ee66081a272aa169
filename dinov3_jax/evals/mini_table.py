r"""Runs every task on small data: a model, the same network untrained, and baselines.

  python -m dinov3_jax.evals.mini_table --weights W --data DIR

W is whatever `dinov3_jax.load` takes. DIR has what `python -m dinov3_jax.evals.mini` writes; sets
that are not in it are written first. What is done is kept in DIR/results, and the same command goes
on from there. Beside the model and the untrained network
stand the mean colour of each patch in place of features, a guess without any features where a task
has one (copying the first mask, one depth everywhere), and features made of the truth: what the
grid of patches allows.
"""

import argparse
import dataclasses
import os
import pathlib
import sys
from collections.abc import Iterator

import jax.numpy as jnp
from flax import nnx

from dinov3_jax.data.preprocess import Preprocess
from dinov3_jax.evals import mini, mini_truth
from dinov3_jax.evals.backbone import open_model
from dinov3_jax.evals.mini_plan import PLANS, Plan
from dinov3_jax.evals.mini_stand_ins import PatchMeans
from dinov3_jax.evals.session import Session
from dinov3_jax.models.variants import build
from dinov3_jax.weights import loading

COLUMNS = ("trained", "untrained", "mean colour", "no features", "the truth")


def sessions(weights: str, cache: pathlib.Path) -> dict[str, Session]:
  """A session for each of the models that are compared, by the column that it fills.

  Raises:
    ValueError: what `dinov3_jax.load` raises.
  """
  model, prepare = open_model(weights)
  settings, _ = loading.read(None, loading.locate(None, weights), jnp.float32, None, "teacher")
  trained = Session(model, prepare, pathlib.Path(), cache, progress=False)
  others = dict(untrained=build(settings, rngs=nnx.Rngs(0)))
  others["mean colour"] = PatchMeans(trained.patch)
  return dict(trained=trained) | {
    name: dataclasses.replace(trained, model=other) for name, other in others.items()}


def figures(session: Session, plan: Plan, root: pathlib.Path) -> dict[str, float]:
  """The figures of a task on its small data, kept on disk."""
  ledger = session.ledger("mini_table", plan)
  return ledger.get(plan.task, lambda: plan.run(session, root).figures)


def truth(plan: Plan, root: pathlib.Path, patch: int) -> dict[str, float]:
  """The figures of a task with features that are made of the truth; none where there are none.

  Args:
    root: of the small data.
    patch: side of a patch, in pixels.
  """
  if plan.data not in mini_truth.TRUTHS:
    return {}
  cache = root / "results" / f"truth_{patch}"
  if not (cache / plan.data).exists():
    mini_truth.write(root, plan.data, cache / plan.data, patch)
  model = PatchMeans(patch, mini_truth.TRUTHS[plan.data][1])
  as_they_are = Preprocess((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
  return figures(Session(model, as_they_are, cache, cache / "figures"), plan, cache)


def rows(weights: str, root: pathlib.Path) -> Iterator[list[str]]:
  """The rows of the table: task, data, figure, and a number or a dash for each of `COLUMNS`."""
  compared = sessions(weights, root / "results")
  for plan in PLANS:
    if (root / plan.data).is_dir():
      found = {name: figures(session, plan, root) for name, session in compared.items()}
      values = [own[plan.figure] for own in found.values()]
      values.append(found["trained"].get(plan.baseline))
      values.append(truth(plan, root, compared["trained"].patch).get(plan.figure))
      yield [plan.task, plan.data, plan.figure,
             *("-" if value is None else f"{value:.2f}" for value in values)]


def main() -> int:
  parser = argparse.ArgumentParser(
      prog="python -m dinov3_jax.evals.mini_table", description=__doc__,
      formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--weights", metavar="W", required=True)
  parser.add_argument("--data", metavar="DIR", required=True, type=os.path.expanduser)
  args = parser.parse_args()
  try:
    missing = [name for name in dict.fromkeys(plan.data for plan in PLANS)
               if not pathlib.Path(args.data, name).exists()]
    if missing:
      mini.write(args.data, sets=missing, beside=True)
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
