"""Student, teacher and Gram teacher on one batch: all losses, and their total (section 3)."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dinov3_jax.losses.gram import bicubic_downsample, gram_loss
from dinov3_jax.losses.koleo import koleo_loss
from dinov3_jax.losses.prototypes import prototype_cross_entropy, sinkhorn_scales_from_bottleneck
from dinov3_jax.models import partition
from dinov3_jax.models.variants import stride


def normalise(crops: jax.Array, mean: tuple[float, ...], std: tuple[float, ...],
              dtype: jnp.dtype) -> jax.Array:
  """Crops [B, n, H, W, C] as one batch of images [B * n, H, W, C] of `dtype`.

  uint8 is scaled to [0, 1] and normalised; floats are taken as normalised already.
  """
  if crops.dtype == jnp.uint8:
    mean, std = np.float32(mean), np.float32(std)
    crops = (crops.astype(jnp.float32) / 255 - mean) / std
  return crops.reshape(-1, *crops.shape[2:]).astype(dtype)


def gather_masked(patches: jax.Array, indices: jax.Array) -> jax.Array:
  """The masked patches of every shard.

  Args:
    patches: [B * 2, N, D].
    indices: [S, M], into each shard's own B / S * 2 * N patches.

  Returns:
    [S * M, D].
  """
  shards, width = indices.shape[0], patches.shape[-1]
  own = patches.reshape(shards, -1, width)
  take = lambda x, i: x.at[i].get(mode="promise_in_bounds")
  return jax.vmap(take)(own, indices).reshape(-1, width)


def merge(graph: nnx.GraphDef, params: dict, layout: dict | None, dtype: jnp.dtype) -> nnx.Module:
  """The network of these parameters, all of them whole but stacked blocks (see `partition.whole`).

  Its blocks become whole one by one, when their turn comes, if `forward_crops` is told their
  layout.
  """
  parts = {name: part if name == "blocks" else
           partition.whole(part, layout and layout[name], dtype)
           for name, part in params.items()}
  return nnx.merge(graph, parts)


def forward(graph: nnx.GraphDef, params: dict, layout: dict | None, dtype: jnp.dtype,
            *crops: jax.Array, **options) -> tuple[dict, dict | None]:
  """`forward_crops` of a backbone, ViT or ConvNeXt, with these parameters; see `merge`."""
  if "blocks" in params:
    options["layout"] = layout and layout["blocks"]
  return merge(graph, params, layout, dtype).forward_crops(*crops, **options)


def make_objective(config, graphs: dict[str, nnx.GraphDef], layout: dict | None = None,
                   prototype_shards: int = 1) -> Callable:
  """`objective(student, teacher, gram_teacher, batch, values, key) -> (total, metrics)`.

  `values` holds this step's schedules and `key` the student's randomness. Gradients flow to the
  student alone; parameters and images are cast to the computation's dtype, losses are float32.

  A batch with `targets` (see `targets.make_targets`) is for distillation: they stand in for
  `teacher`, which is not used, and the student sees all patches; the masks only choose those that
  iBOT compares (paper, section 5; so in the reference).

  With a `layout`, the parameters' `PartitionSpec`s, it runs under `jax.shard_map` over
  `partition.DATA_AXES`. Its batch and losses are then those of one shard (the losses of all are
  their mean) but for Sinkhorn, which sees all samples; the gradients are already averaged. The
  prototypes are cut into `prototype_shards` by what the compiler does.
  """
  dtype = jnp.dtype(config.train.dtype)
  crops, gram, chunks = config.crops, config.gram, config.train.prototype_chunks
  patch = stride(config.model)
  global_pairs = 2 if config.dino.ignore_diagonal else 4
  local_pairs = 2 * crops.locals
  global_share = global_pairs / (global_pairs + local_pairs)
  over = dict(chunks=chunks, shards=prototype_shards)

  def network(params, name):
    return merge(graphs[name], params[name], layout and layout[name], dtype)

  def backbone(params, *crops, **options):
    return forward(graphs["backbone"], params["backbone"], layout and layout["backbone"], dtype,
                   *crops, **options)

  def cross_entropy(student, name, student_rows, teacher_rows, teacher_kernel, weights,
                    temperature):
    """Student [B, S, D] against the teacher's bottleneck [B, T, d]: [S, T], each summed over B."""
    student = network(student, name)
    kernel = student.last_layer.kernel[...]
    teacher_rows = jax.lax.stop_gradient(teacher_rows)
    samples = teacher_rows.reshape(-1, teacher_rows.shape[-1])
    axes = () if layout is None else partition.several()
    u, v = sinkhorn_scales_from_bottleneck(samples, teacher_kernel, temperature, axes=axes, **over)
    return prototype_cross_entropy(
        student.bottleneck(student_rows), kernel, teacher_rows, teacher_kernel, u,
        v.reshape(teacher_rows.shape[:2]), weights, temperature, **over)

  def gram_targets(gram_teacher, teacher_patches, batch, grid):
    """Patch features that the student's Gram matrix should match, [B * 2, N, D]."""
    if gram.teacher == "ema":
      return teacher_patches
    images = normalise(batch["gram_crops"], crops.mean, crops.std, dtype)
    patches = backbone(gram_teacher, images)[0]["patches"]
    sides = [side // patch for side in images.shape[1:3]]
    patches = patches.reshape(len(patches), *sides, -1)
    return bicubic_downsample(patches, grid).reshape(len(patches), np.prod(grid), -1)

  def objective(student, teacher, gram_teacher, batch, values, key):
    images = batch["global_crops"].shape[0]
    masks = batch["masks"].reshape(2 * images, -1)
    shards = batch["mask_indices"].shape[0]
    global_crops = normalise(batch["global_crops"], crops.mean, crops.std, dtype)
    local_crops = normalise(batch["local_crops"], crops.mean, crops.std, dtype)
    grid = [side // patch for side in global_crops.shape[1:3]]
    masked = lambda patches: gather_masked(patches, batch["mask_indices"])
    per_image = lambda x: x.reshape(images, -1, x.shape[-1])
    temperature = values["teacher_temp"]

    targets = batch.get("targets")
    if targets is None:
      teacher_tokens, _ = backbone(teacher, global_crops)
      heads = {name: network(teacher, name) for name in ("dino_head", "ibot_head")}
      teacher_cls = heads["dino_head"].bottleneck(per_image(teacher_tokens["cls"]))
      teacher_masked = heads["ibot_head"].bottleneck(masked(teacher_tokens["patches"]))
      kernels = {name: head.last_layer.kernel[...] for name, head in heads.items()}
    else:
      teacher_cls = targets["cls"]
      teacher_masked = masked(targets["patches"].reshape(2 * images, *targets["patches"].shape[2:]))
      kernels = {name: partition.whole(kernel, layout and layout[name]["last_layer"]["kernel"],
                                       dtype) for name, kernel in targets["prototypes"].items()}
    tokens, local_tokens = backbone(
        student, global_crops, local_crops, masks if targets is None else None, key=key,
        shards=shards, remat=config.train.remat)

    global_cls = per_image(tokens["cls"])
    dino = cross_entropy(
        student, "dino_head",
        jnp.concatenate([global_cls, per_image(local_tokens["cls"])], axis=1),
        teacher_cls, kernels["dino_head"], jnp.ones(images), temperature) / images
    diagonal = jnp.trace(dino[:2]) if config.dino.ignore_diagonal else 0.0
    ibot = cross_entropy(
        student, "ibot_head", masked(tokens["patches"])[:, None], teacher_masked[:, None],
        kernels["ibot_head"], batch["mask_weights"].reshape(-1), temperature)
    koleo = [koleo_loss(crop, config.koleo.group, config.koleo.topk)
             for crop in jnp.moveaxis(global_cls, 1, 0) if config.koleo.weight]
    metrics = dict(
        dino_global_loss=(jnp.sum(dino[:2]) - diagonal) / global_pairs,
        dino_local_loss=jnp.sum(dino[2:]) / local_pairs,
        ibot_loss=jnp.sum(ibot) / (2 * images),  # crops without a mask count, too
        koleo_loss=sum(koleo, jnp.zeros(())) / 2,
    )
    total = (config.dino.weight * (1 - global_share) * values["dino_local_weight"]
             * metrics["dino_local_loss"]
             + config.dino.weight * global_share * metrics["dino_global_loss"]
             + config.ibot.weight * metrics["ibot_loss"]
             + config.koleo.weight * 2 * metrics["koleo_loss"])

    if gram.teacher != "none":
      if targets is not None:
        raise ValueError("a Gram teacher and a teacher to distil exclude each other: set "
                         "gram.teacher=none")
      gram_features = gram_targets(gram_teacher, teacher_tokens["patches"], batch, grid)
      # Batch-level matrices stay within a shard.
      own = lambda x: x.reshape(shards, -1, *x.shape[1:])
      options = dict(normalized=gram.normalized, negatives=gram.negatives)

      def batch_level(select):
        loss = lambda s, t, m: gram_loss(s, t, image_level=False, select=m, **options)
        return jnp.mean(jax.vmap(loss)(own(tokens["patches"]), own(gram_features), own(select)))

      selections = dict(all=jnp.ones_like(masks), masked=masks, unmasked=~masks)
      if gram.image_level:
        metrics["gram_loss"] = gram_loss(tokens["patches"], gram_features, **options)
      else:
        metrics["gram_loss"] = batch_level(selections[gram.tokens])
      metrics["gram_weight"] = values["gram_weight"]
      if gram.stats:
        for name in ("masked", "unmasked"):
          metrics[f"gram_loss_{name}"] = jax.lax.stop_gradient(batch_level(selections[name]))
      total += values["gram_weight"] * metrics["gram_loss"]
    return total, metrics

  return objective
