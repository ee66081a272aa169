"""The targets of a frozen teacher, which several students may learn from (paper, section 5)."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from dinov3_jax.models import attention
from dinov3_jax.models.partition import DATA_AXES, local_spec
from dinov3_jax.models.variants import stride
from dinov3_jax.train.objective import forward, merge, normalise
from dinov3_jax.train.sharding import on_shards, param_specs
from dinov3_jax.train.state import Params, abstract_modules

HEADS = ("dino_head", "ibot_head")


def check_student(config, teacher, name: str = "the student"):
  """Raises a ValueError, one line, if a student cannot learn from a teacher.

  Args:
    config: of the student's run.
    teacher: settings with the sections `model`, `dino` and `ibot`.
    name: of the student, for the message.
  """
  for head in ("dino", "ibot"):
    there, here = teacher[head].prototypes, config[head].prototypes
    if there != here:
      raise ValueError(f"the teacher's {head} head has {there:,} prototypes, that of {name} "
                       f"{here:,}: set {head}.prototypes={there}")
  theirs, ours = stride(teacher.model), stride(config.model)
  if theirs > ours:
    raise ValueError(f"a patch of {name} is {ours} pixels wide and one of the teacher {theirs}: it "
                     "would have to see larger crops than there are; take a student whose patches "
                     "are as large or larger")
  if config.gram.teacher != "none":
    raise ValueError(f"gram.teacher={config.gram.teacher!r} does not go with distillation: set it "
                     "to none")


def teacher_crops(crops: jax.Array, teacher_stride: int, student_stride: int) -> jax.Array:
  """Crops [n, H, W, C] on which a teacher has the grid of a student; float32, normalised.

  Where the student's patches are larger, as a ConvNeXt's of 32 pixels, the teacher sees crops that
  are smaller by as much (bilinear, antialiased).
  """
  if teacher_stride == student_stride:
    return crops
  sides = [side // student_stride * teacher_stride for side in crops.shape[1:3]]
  return jax.image.resize(crops, (len(crops), *sides, crops.shape[-1]), "linear", antialias=True)


def make_targets(config, teacher, mesh: Mesh | None = None) -> Callable[[Params, dict], dict]:
  """`targets(params, batch)`, pure: what students take in place of a teacher of their own.

  The teacher sees both global crops whole, without randomness. Its heads' last layers and Sinkhorn
  are left to each student's step, whose masks and temperature are its own: a bottleneck is a small
  part of the logits (so in the reference).

  Args:
    config: of a student's run, for its crops and the computation's dtype.
    teacher: settings with the sections `model`, `dino`, `ibot` and `crops`, of which the mean and
      deviation count.
    mesh: of the devices.

  Returns:
    A function of the teacher's parameters and of a batch. Its result has `cls` [B, 2, d] and
    `patches` [B, 2, N, d'], the bottlenecks of CLS in the DINO head and of every patch in the iBOT
    head, and `prototypes`, the last layers' kernels `dino_head` [d, K] and `ibot_head` [d', K'].

  Raises:
    ValueError: from `check_student`.
  """
  check_student(config, teacher)
  graphs, shapes = abstract_modules(teacher)
  layout = param_specs(mesh, shapes) if mesh is not None and mesh.size > 1 else None
  dtype = jnp.dtype(config.train.dtype)
  platform = jax.default_backend() if mesh is None else mesh.devices.flat[0].platform
  graphs = attention.choose(graphs, shapes, config.train.attention, platform, dtype)
  strides = stride(teacher.model), stride(config.model)
  mean, std = teacher.crops.mean, teacher.crops.std

  def rows(params, crops):
    images = normalise(crops, mean, std, jnp.float32)
    images = teacher_crops(images, *strides).astype(dtype)
    tokens, _ = forward(graphs["backbone"], params["backbone"], layout and layout["backbone"],
                        dtype, images)
    dino, ibot = (merge(graphs[name], params[name], layout and layout[name], dtype)
                  for name in HEADS)
    per_image = lambda x: x.reshape(len(crops), 2, *x.shape[1:])
    return dict(cls=per_image(dino.bottleneck(tokens["cls"])),
                patches=per_image(ibot.bottleneck(tokens["patches"])))

  if layout is not None:
    rows = on_shards(rows, mesh, (jax.tree.map(local_spec, layout), P(DATA_AXES)), P(DATA_AXES))

  def targets(params: Params, batch: dict) -> dict:
    prototypes = {name: params[name]["last_layer"]["kernel"] for name in HEADS}
    return rows(params, batch["global_crops"]) | dict(prototypes=prototypes)

  return targets
