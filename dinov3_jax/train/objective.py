"""Student, teacher and Gram teacher on one batch: all losses, and their total (section 3)."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dinov3_jax.losses.gram import bicubic_downsample, gram_loss
from dinov3_jax.losses.koleo import koleo_loss
from dinov3_jax.losses.preservation import preservation_loss
from dinov3_jax.losses.prototypes import prototype_cross_entropy, sinkhorn_scales_from_bottleneck
from dinov3_jax.losses.usage import cls_patch_cosine, prototype_usage
from dinov3_jax.models import partition
from dinov3_jax.models.variants import stride

HEADS = ("dino", "ibot")


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


def zeros_unless(condition: jax.Array, f: Callable[[Any], Any]) -> Callable[[Any], Any]:
  """`f`; where a condition does not hold, zeros in place of its result, without its cost."""

  def either(x):
    nothing = lambda x: jax.tree.map(lambda y: jnp.zeros(y.shape, y.dtype), jax.eval_shape(f, x))
    return jax.lax.cond(condition, f, nothing, x)

  return either


class Frozen(NamedTuple):
  """Of a frozen teacher's head what a step needs: the last layer's `kernel` [d, K]."""

  kernel: jax.Array


class Objective(NamedTuple):
  """The losses of a step, in the order in which they are computed.

  A batch may be cut into parts in between: `look` and `losses` each see the images of one part,
  `balance` the rows of all of them.

  Attributes:
    heads: `(teacher) -> heads`, the teacher's heads as modules, of a frozen one as `Frozen`.
    look: `(teacher, heads, batch) -> rows`, a dict: the teacher's bottlenecks `dino` [B, 2, d] and
      `ibot` [S * M, 1, d'], its patch features `patches` [B * 2, N, D] where the Gram loss takes
      them (else None), and `cls_patch_cosine`, None of a frozen teacher. No gradient flows through
      them.
    balance: `(heads, rows, temperature, parts=1) -> (scales, metrics)`: Sinkhorn's two vectors of
      either head, `u` [K] and `v` shaped as its rows but for their last axis, and how the
      prototypes are used. With `parts`, it holds no more logits at once than that share of them.
    losses: `(student, heads, gram_teacher, batch, values, key, rows, scales) -> (total, metrics)`.
  """

  heads: Callable[[dict], dict[str, nnx.Module]]
  look: Callable[..., dict[str, Any]]
  balance: Callable[..., tuple[dict, dict]]
  losses: Callable[..., tuple[jax.Array, dict]]

  def __call__(self, student, teacher, gram_teacher, batch, values, key):
    heads = self.heads(teacher)
    rows = self.look(teacher, heads, batch)
    scales, usage = self.balance(heads, rows, values["teacher_temp"])
    total, metrics = self.losses(student, heads, gram_teacher, batch, values, key, rows, scales)
    return total, metrics | usage


def balancing_chunks(prototypes: int, chunks: int, shards: int, parts: int) -> int:
  """Into how many chunks Sinkhorn cuts the prototypes, so that the logits of `parts` times as many
  samples take no more memory: the first number from `chunks * parts` on that divides them."""
  most = prototypes // shards
  return next(n for n in range(min(chunks * parts, most), most + 1) if most % n == 0)


def make_objective(config, graphs: dict[str, nnx.GraphDef], layout: dict | None = None,
                   prototype_shards: int = 1) -> Objective:
  """`objective(student, teacher, gram_teacher, batch, values, key) -> (total, metrics)`.

  `values` holds this step's schedules and `key` the student's randomness. Gradients flow to the
  student alone; parameters and images are cast to the computation's dtype, losses are float32.

  A batch with `targets`, the rows that `targets.make_targets` makes, is for distillation: `teacher`
  is then `{"prototypes": {"dino_head", "ibot_head"}}`, the frozen teacher's last layers, and the
  student sees all patches; the masks only choose those that iBOT compares (paper, section 5; so in
  the reference). `cls_patch_cosine` is then the student's.

  With a `layout`, the parameters' `PartitionSpec`s, it runs under `jax.shard_map` over
  `partition.DATA_AXES`. Its batch and losses are then those of one shard (the losses of all are
  their mean) but for Sinkhorn, which sees all samples; the gradients are already averaged. The
  prototypes are cut into `prototype_shards` by what the compiler does.
  """
  dtype = jnp.dtype(config.train.dtype)
  crops, gram, chunks = config.crops, config.gram, config.train.prototype_chunks
  patch, preserved = stride(config.model), config.cls_preservation.weight
  global_pairs = 2 if config.dino.ignore_diagonal else 4
  local_pairs = 2 * crops.locals
  global_share = global_pairs / (global_pairs + local_pairs)
  over = dict(chunks=chunks, shards=prototype_shards)

  def network(params, name):
    return merge(graphs[name], params[name], layout and layout[name], dtype)

  def backbone(params, *crops, **options):
    return forward(graphs["backbone"], params["backbone"], layout and layout["backbone"], dtype,
                   *crops, **options)

  def heads(teacher):
    if "prototypes" in teacher:
      return {name: Frozen(partition.whole(
        teacher["prototypes"][f"{name}_head"],
        layout and layout[f"{name}_head"]["last_layer"]["kernel"], dtype)) for name in HEADS}
    return {name: network(teacher, f"{name}_head") for name in HEADS}

  def kernel(head):
    return head.kernel if isinstance(head, Frozen) else head.last_layer.kernel[...]

  def masked(patches, batch):
    return gather_masked(patches, batch["mask_indices"])[:, None]

  def global_images(batch):
    return normalise(batch["global_crops"], crops.mean, crops.std, dtype)

  def look(teacher, heads, batch):
    images = batch["global_crops"].shape[0]
    if "targets" in batch:
      if gram.teacher != "none":
        raise ValueError("a Gram teacher and a teacher to distil exclude each other: set "
                         "gram.teacher=none")
      cls, patches = batch["targets"]["cls"], batch["targets"]["patches"]
      patches = patches.reshape(2 * images, *patches.shape[2:])
      return dict(dino=cls, ibot=masked(patches, batch), patches=None, cls_patch_cosine=None)
    tokens, _ = backbone(teacher, global_images(batch))
    cls = tokens["cls"].reshape(images, 2, -1)
    return jax.lax.stop_gradient(dict(
      dino=heads["dino"].bottleneck(cls), ibot=heads["ibot"].bottleneck(
        masked(tokens["patches"], batch)),
      patches=tokens["patches"] if gram.teacher == "ema" else None,
      cls_patch_cosine=cls_patch_cosine(tokens["cls"], tokens["patches"])))

  def balance(heads, rows, temperature, parts=1):
    axes = () if layout is None else partition.several()
    scales, options = {}, {}
    for name in HEADS:
      samples = rows[name].reshape(-1, rows[name].shape[-1])
      options[name] = dict(axes=axes, shards=prototype_shards, chunks=chunks if parts == 1 else
                           balancing_chunks(config[name].prototypes, chunks, prototype_shards,
                                            parts))
      u, v = sinkhorn_scales_from_bottleneck(samples, kernel(heads[name]), temperature,
                                             **options[name])
      scales[name] = u, v.reshape(rows[name].shape[:-1])
    samples = rows["dino"].reshape(-1, rows["dino"].shape[-1])
    usage = prototype_usage(samples, kernel(heads["dino"]), temperature, **options["dino"])
    metrics = dict(prototype_entropy=usage[0], prototype_use=usage[1])
    if rows["cls_patch_cosine"] is not None:
      metrics["cls_patch_cosine"] = jnp.mean(rows["cls_patch_cosine"])
    return scales, metrics

  def cross_entropy(student, heads, name, student_rows, teacher_rows, scales, weights, temperature):
    """Student [B, S, D] against the targets of teacher [B, T, d]: [S, T], each summed over B."""
    head = network(student, f"{name}_head")
    return prototype_cross_entropy(
        head.bottleneck(student_rows), kernel(head), teacher_rows[name], kernel(heads[name]),
        *scales[name], weights, temperature, **over)

  def gram_targets(gram_teacher, teacher_patches, batch, grid):
    """Patch features that the student's Gram matrix should match, [B * 2, N, D], and the CLS
    features [B * 2, D] of the same forward pass (None of the EMA teacher)."""
    if gram.teacher == "ema":
      return teacher_patches, None
    if "gram_crops" not in batch:
      tokens = backbone(gram_teacher, global_images(batch))[0]
      return tokens["patches"], tokens["cls"]
    images = normalise(batch["gram_crops"], crops.mean, crops.std, dtype)
    tokens = backbone(gram_teacher, images)[0]
    sides = [side // patch for side in images.shape[1:3]]
    patches = tokens["patches"].reshape(len(images), *sides, -1)
    patches = bicubic_downsample(patches, grid).reshape(len(images), np.prod(grid), -1)
    return patches, tokens["cls"]

  def gram_terms(patches, targets, masks, shards):
    """`gram_loss`, and those for statistics."""
    # Batch-level matrices stay within a shard.
    own = lambda x: x.reshape(shards, -1, *x.shape[1:])
    options = dict(normalized=gram.normalized, negatives=gram.negatives)

    def batch_level(select):
      loss = lambda s, t, m: gram_loss(s, t, image_level=False, select=m, **options)
      return jnp.mean(jax.vmap(loss)(own(patches), own(targets), own(select)))

    selections = dict(all=jnp.ones_like(masks), masked=masks, unmasked=~masks)
    if gram.image_level:
      terms = dict(gram_loss=gram_loss(patches, targets, **options))
    else:
      terms = dict(gram_loss=batch_level(selections[gram.tokens]))
    if gram.stats:
      terms |= {f"gram_loss_{name}": jax.lax.stop_gradient(batch_level(selections[name]))
                for name in ("masked", "unmasked")}
    return terms

  def losses(student, heads, gram_teacher, batch, values, key, rows, scales):
    images = batch["global_crops"].shape[0]
    masks = batch["masks"].reshape(2 * images, -1)
    shards = batch["mask_indices"].shape[0]
    global_crops = global_images(batch)
    local_crops = normalise(batch["local_crops"], crops.mean, crops.std, dtype)
    grid = [side // patch for side in global_crops.shape[1:3]]
    per_image = lambda x: x.reshape(images, -1, x.shape[-1])
    temperature = values["teacher_temp"]

    # A distilled student sees all patches (paper, section 5; so in the reference).
    tokens, local_tokens = backbone(
        student, global_crops, local_crops, None if "targets" in batch else masks, key=key,
        shards=shards, remat=config.train.remat)

    global_cls = per_image(tokens["cls"])
    dino = cross_entropy(
        student, heads, "dino",
        jnp.concatenate([global_cls, per_image(local_tokens["cls"])], axis=1), rows, scales,
        jnp.ones(images), temperature) / images
    diagonal = jnp.trace(dino[:2]) if config.dino.ignore_diagonal else 0.0
    ibot = cross_entropy(
        student, heads, "ibot", masked(tokens["patches"], batch), rows, scales,
        batch["mask_weights"].reshape(-1), temperature)
    koleo = [koleo_loss(crop, config.koleo.group, config.koleo.topk)
             for crop in jnp.moveaxis(global_cls, 1, 0) if config.koleo.weight]
    metrics = dict(
        dino_global_loss=(jnp.sum(dino[:2]) - diagonal) / global_pairs,
        dino_local_loss=jnp.sum(dino[2:]) / local_pairs,
        ibot_loss=jnp.sum(ibot) / (2 * images),  # crops without a mask count, too
        koleo_loss=sum(koleo, jnp.zeros(())) / 2,
    )
    if "targets" in batch:  # a frozen teacher's would say nothing about the run
      metrics["cls_patch_cosine"] = cls_patch_cosine(tokens["cls"], tokens["patches"])
    total = (config.dino.weight * (1 - global_share) * values["dino_local_weight"]
             * metrics["dino_local_loss"]
             + config.dino.weight * global_share * metrics["dino_global_loss"]
             + config.ibot.weight * metrics["ibot_loss"]
             + config.koleo.weight * 2 * metrics["koleo_loss"])

    if gram.teacher != "none":
      def terms(tokens):
        patches, cls = gram_targets(gram_teacher, rows["patches"], batch, grid)
        found = gram_terms(tokens["patches"], patches, masks, shards)
        if preserved:
          found["cls_preservation_loss"] = preservation_loss(tokens["cls"], cls)
        return found

      if gram.start_at is not None:
        terms = zeros_unless(values["gram_started"], terms)
      metrics |= terms(tokens)
      metrics["gram_weight"] = values["gram_weight"]
      total += values["gram_weight"] * metrics["gram_loss"]
      if preserved:
        total += preserved * metrics["cls_preservation_loss"]
    return total, metrics

  return Objective(heads, look, balance, losses)
