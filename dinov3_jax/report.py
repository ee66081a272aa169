"""Says what a run has learned, in one table.

  python -m dinov3_jax.report --workdir=DIR

It has the k-NN accuracy of raw pixels, of the network before its first step and of the trained
teacher, on images that neither training nor the evaluations beside it have seen.
"""

if __name__ == "__main__":
  from dinov3_jax import signals
  signals.exit_at_once()

import os
import sys

from dinov3_jax import arguments
from dinov3_jax.main import fail


def report(workdir: str | os.PathLike, split: str = "test") -> str:
  """The table, three rows of accuracies under a line that says how they were measured.

  Every row has the protocol of the run's evaluations (its `config.evals`), with the training images
  as the bank and all of `split` as queries. The untrained network is the run's own at step 0.

  Raises:
    FileNotFoundError: the run has no checkpoint.
    ValueError: its images cannot be opened, have no such split, or no labels; or it is a run of
      text.
  """
  # Here, so that the command answers --help without them: they are slow.
  import jax
  from etils import epath

  from dinov3_jax.evals.knn import raw_pixels
  from dinov3_jax.train import checkpoint, sharding
  from dinov3_jax.train.evaluation import Evaluation
  from dinov3_jax.train.images import open_images
  from dinov3_jax.train.state import init_state
  from dinov3_jax.weights import native

  folder = checkpoint.locate(workdir)
  config = checkpoint.stored_config(folder)
  native.check_backbone(config)
  bank, queries = (_with_labels(open_images(config, name)) for name in ("train", split))
  if bank.labels is None or queries.labels is None:
    raise ValueError(f"{config.data.source} has no labels to report a k-NN accuracy on")
  config.mesh.update(data=1, fsdp=-1, tensor=1)  # of the devices here, not of those it trained on
  mesh = sharding.make_mesh(config)
  born = jax.jit(lambda: init_state(config).teacher["backbone"])
  shapes = jax.eval_shape(born)
  layout = sharding.state_sharding(mesh, {"backbone": shapes})["backbone"]
  untrained = jax.device_put(born(), layout)
  abstract = jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, layout)
  trained, _ = checkpoint.restore_teacher(folder, {"backbone": abstract})

  evaluation = Evaluation(config, epath.Path(workdir), mesh, bank, queries)
  rows = {
    "raw pixels": raw_pixels,
    "untrained network": lambda images: evaluation.cls(untrained, images),
    f"teacher, {int(folder.name):,} steps":
      lambda images: evaluation.cls(trained["backbone"], images),
  }
  labelled = int((queries.labels >= 0).sum())
  lines = [f"k-NN (k = {config.evals.knn_k}, cosine) of {labelled:,} {split} images of "
           f"{config.data.source}, {len(queries.classes)} classes"]
  for name, features in rows.items():
    lines.append(f"  {name:<24}{evaluation.knn(features)['top1']:7.1%}")
  return "\n".join(lines)


def _with_labels(source):
  """A source that has labels, if only reading its images tells them."""
  import numpy as np

  from dinov3_jax.data.sources.subset import Subset
  from dinov3_jax.evals.class_folders import labels_of
  if source.labels is not None or (labels := labels_of(source)) is None:
    return source
  return Subset(source, np.arange(len(source)), labels, source.classes)


def parser() -> arguments.Parser:
  """The command line."""
  made = arguments.Parser("report", __doc__)
  made.add_argument("--workdir", required=True, type=os.path.expanduser,
                    help="of a run, or one of its checkpoints")
  made.add_argument("--split", default="test", help="of the images: val or test (default)")
  return made


def main() -> int:
  args = parser().parse_args()
  try:
    print(report(args.workdir, args.split))
  except (ValueError, OSError) as error:
    return fail(error)
  return 0


if __name__ == "__main__":
  sys.exit(main())
