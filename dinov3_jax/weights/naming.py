"""Our parameter trees, and the names and layouts that PyTorch code gives the same arrays.

Ours and theirs differ in names, in the axes' order, and in that we stack equal blocks; Hugging Face
also keeps queries, keys and values apart.
"""

import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from dinov3_jax.models.rope import Rope

Params = dict[str, Any]
Shape = tuple[int, ...]
Convention = Literal["official", "huggingface"]

# Ours: (the reference's, Hugging Face's). `*` stands for the last part of the name, as in LEAVES,
# `#` for the place on a stacked parameter's leading axis. None: cannot be kept there. Three names:
# one each for queries, keys and values. Two: the same array is kept twice.
LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias"}
VIT = {
    "cls_token": ("cls_token", "embeddings.cls_token"),
    "storage_tokens": ("storage_tokens", "embeddings.register_tokens"),
    "mask_token": ("mask_token", "embeddings.mask_token"),
    "patch_embed/*": ("patch_embed.proj.*", "embeddings.patch_embeddings.*"),
    # Of a convolutional stem, which only we have.
    "patch_embed/proj/*": ("patch_embed.proj.*", None),
    **{f"patch_embed/{part}/{i}/*": (f"patch_embed.{part}.{i}.*", None)
       for part in ("convs", "norms") for i in range(8)},
    "blocks/norm1/*": ("blocks.#.norm1.*", "layer.#.norm1.*"),
    "blocks/attn/qkv/*": ("blocks.#.attn.qkv.*",
                          tuple(f"layer.#.attention.{x}_proj.*" for x in "qkv")),
    "blocks/attn/proj/*": ("blocks.#.attn.proj.*", "layer.#.attention.o_proj.*"),
    "blocks/ls1/gamma": ("blocks.#.ls1.gamma", "layer.#.layer_scale1.lambda1"),
    "blocks/norm2/*": ("blocks.#.norm2.*", "layer.#.norm2.*"),
    "blocks/mlp/fc1/*": ("blocks.#.mlp.fc1.*", "layer.#.mlp.up_proj.*"),
    "blocks/mlp/fc2/*": ("blocks.#.mlp.fc2.*", "layer.#.mlp.down_proj.*"),
    "blocks/mlp/w1/*": ("blocks.#.mlp.w1.*", "layer.#.mlp.gate_proj.*"),
    "blocks/mlp/w2/*": ("blocks.#.mlp.w2.*", "layer.#.mlp.up_proj.*"),
    "blocks/mlp/w3/*": ("blocks.#.mlp.w3.*", "layer.#.mlp.down_proj.*"),
    "blocks/ls2/gamma": ("blocks.#.ls2.gamma", "layer.#.layer_scale2.lambda1"),
    "norm/*": ("norm.*", "norm.*"),
    "cls_norm/*": ("cls_norm.*", None),
    "local_cls_norm/*": ("local_cls_norm.*", None),
}
CONVNEXT_BLOCK = {
    "dwconv/*": ("dwconv.*", "depthwise_conv.*"),
    "norm/*": ("norm.*", "layer_norm.*"),
    "mlp/fc1/*": ("pwconv1.*", "pointwise_conv1.*"),
    "mlp/fc2/*": ("pwconv2.*", "pointwise_conv2.*"),
    "ls/gamma": ("gamma", "gamma"),
}
CONVNEXT = {
    **{f"downsample/{s}/{part}/*": (f"downsample_layers.{s}.{i}.*",
                                    f"stages.{s}.downsample_layers.{i}.*")
       for s in range(4) for i, part in enumerate(("norm", "conv") if s else ("conv", "norm"))},
    **{f"stages/{s}/{ours}": (f"stages.{s}.#.{official}", f"stages.{s}.layers.#.{huggingface}")
       for s in range(4) for ours, (official, huggingface) in CONVNEXT_BLOCK.items()},
    "norm/*": (("norm.*", "norms.3.*"), "layer_norm.*"),
}
# There the GELUs between a head's layers are counted, too.
HEAD = {f"mlp/{i}/*": (f"mlp.{2 * i}.*", None) for i in range(16)}
HEAD["last_layer/*"] = ("last_layer.*", None)
# dino.txt's, which Hugging Face does not have: text tower, vision head, and the text's last layer.
PROJECTION = {"linear_projection/*": ("linear_projection.*", None)}
TEXT_TOWER = {
    "token_embedding": ("token_embedding.weight", None),
    "positional_embedding": ("positional_embedding", None),
    "blocks/norm1/*": ("blocks.#.attention_norm.*", None),
    "blocks/attn/qkv/*": ("blocks.#.attention.qkv.*", None),
    "blocks/attn/proj/*": ("blocks.#.attention.proj.*", None),
    "blocks/norm2/*": ("blocks.#.ffn_norm.*", None),
    "blocks/mlp/fc1/*": ("blocks.#.feed_forward.fc1.*", None),
    "blocks/mlp/fc2/*": ("blocks.#.feed_forward.fc2.*", None),
    "ln_final/*": ("ln_final.*", None),
}
VISION_HEAD = {name: (official, None) for name, (official, _) in VIT.items()
               if name.startswith("blocks/")} | PROJECTION | {"ln_final/*": ("ln_final.*", None)}
# The first that a tree has decides.
FAMILIES = {"token_embedding": TEXT_TOWER, "ln_final": VISION_HEAD, "blocks": VIT,
            "stages": CONVNEXT, "last_layer": HEAD, "linear_projection": PROJECTION}

BUFFERS = re.compile(r"(^|\.)(rope_embed\.periods|attn\.qkv\.bias_mask)$")


@dataclasses.dataclass(frozen=True)
class Entry:
  """One of their arrays, and the box of one of our parameters that it fills.

  Attributes:
    name: their name.
    path: our path.
    start, shape: where the box begins in ours, and how large it is; it has as many axes.
    theirs: their shape.
    copy_of: the name of the array that must be equal, where theirs is a second copy.
  """

  name: str
  path: tuple[str, ...]
  start: Shape
  shape: Shape
  theirs: Shape
  copy_of: str | None = None

  @property
  def box(self) -> tuple[slice, ...]:
    """The index of the box in our parameter."""
    return tuple(slice(a, a + n) for a, n in zip(self.start, self.shape))

  def to_ours(self, array: np.ndarray) -> np.ndarray:
    """An array of theirs as a view of `shape`."""
    if self.path[-1] == "kernel":
      array = np.moveaxis(array, (0, 1), (-1, -2))
    return array.reshape(self.shape)

  def to_theirs(self, param: np.ndarray) -> np.ndarray:
    """What of our whole parameter is theirs, in their layout; contiguous."""
    value = param[self.box]
    if self.path[-1] == "kernel":
      # (out, in, *space) there; of ours, axes of length 1 and those of q, k and v melt away.
      out, inputs, *space = self.theirs
      value = np.moveaxis(value.reshape(*space, inputs, out), (-1, -2), (0, 1))
    return np.ascontiguousarray(value.reshape(self.theirs))


def entries(params: Params, convention: Convention = "official", mask_k_bias: bool = False
            ) -> Iterator[Entry]:
  """Every array of theirs that stands for a tree of ours, in a stable order.

  Args:
    params: arrays or shapes of a backbone or a head, or nested dicts of those; their keys become
      prefixes. An array among them has its key for a name.
    convention: whose names.
    mask_k_bias: the model has no bias of the keys, which Hugging Face then leaves out.
  """
  yield from _entries(params, (), convention, mask_k_bias)


def _entries(params, root, convention, mask_k_bias):
  if not isinstance(params, Mapping):
    yield Entry(".".join(root), root, (0,) * params.ndim, params.shape, params.shape)
    return
  table = next((table for marker, table in FAMILIES.items() if marker in params), None)
  if table is None:
    for name in sorted(params):
      yield from _entries(params[name], (*root, name), convention, mask_k_bias)
    return
  prefix = "".join(f"{name}." for name in root)
  for path, leaf in by_path(params).items():
    rule = table.get("/".join(path)) or table.get("/".join((*path[:-1], "*")))
    if rule is None:
      raise ValueError(f"{'/'.join(path)} has no name elsewhere: add it to the table of names")
    names = rule[convention == "huggingface"] or ()
    names = [names] if isinstance(names, str) else list(names)
    names = [prefix + name.replace("*", LEAVES.get(path[-1], "*")) for name in names]
    parts = len(names) == 3
    stacked = "#" in rule[0]
    for layer in range(leaf.shape[0] if stacked else 1):
      for part, name in enumerate(names):
        if mask_k_bias and name.endswith("k_proj.bias"):
          continue
        start, shape = [0] * len(leaf.shape), list(leaf.shape)
        if stacked:
          start[0], shape[0] = layer, 1
        if parts:
          start[-2], shape[-2] = part, 1
        theirs = _their_shape(path, shape[stacked:], convention)
        copy_of = names[0] if part and not parts else None
        yield Entry(name.replace("#", str(layer)), (*root, *path), tuple(start), tuple(shape),
                    theirs, copy_of)


def _their_shape(path, shape, convention) -> Shape:
  if "qkv" in path:
    shape = [*shape[:-2], shape[-2] * shape[-1]]
  if path[-1] == "kernel":
    shape = [shape[-1], shape[-2], *shape[:-2]]
  if path[-1] == "mask_token" and convention == "huggingface":
    shape = [1, *shape]
  return tuple(shape)


def check(wanted: Iterable[Entry], arrays: Mapping[str, np.ndarray], problems: Iterable[str] = ()):
  """Holds arrays against what should be there; reads none but second copies.

  Args:
    wanted: from `entries`.
    arrays: by their names; buffers that follow from the architecture, and empty ones, may be there.
    problems: found before.

  Raises:
    ValueError: one line with every array that is missing, of no use, or of another shape or kind.
  """
  wanted, problems = list(wanted), list(problems)
  known = {entry.name for entry in wanted}
  missing = [e.name for e in wanted if e.name not in arrays and not e.copy_of]
  unused = sorted(name for name, array in arrays.items()
                  if name not in known and array.size and not BUFFERS.search(name))
  if missing:
    problems.append(f"missing: {', '.join(missing)}")
  if unused:
    problems.append(f"of no use: {', '.join(unused)}")
  for entry in wanted:
    array = arrays.get(entry.name)
    if array is None:
      continue
    if array.shape != entry.theirs:
      problems.append(f"{entry.name} is {list(array.shape)}, expected {list(entry.theirs)}")
    if not jnp.issubdtype(array.dtype, jnp.floating):
      problems.append(f"{entry.name} is {array.dtype}, expected floating point")
    if entry.copy_of in arrays and not np.array_equal(array, arrays[entry.copy_of]):
      problems.append(f"{entry.name} is not the copy of {entry.copy_of} that it should be")
  if problems:
    raise ValueError("these weights do not fit this architecture; " + "; ".join(problems))


def flatten(params: Params, convention: Convention = "official", mask_k_bias: bool = False
            ) -> dict[str, np.ndarray]:
  """A tree of ours under their names and in their layout, bit for bit."""
  leaves = by_path(jax.tree.map(np.asarray, params))
  return {entry.name: entry.to_theirs(leaves[entry.path])
          for entry in entries(params, convention, mask_k_bias)}


def unflatten(arrays: Mapping[str, np.ndarray], shapes: Params, convention: Convention = "official",
              mask_k_bias: bool = False) -> Params:
  """The tree of ours that their `arrays` fill; the inverse of `flatten`.

  Args:
    arrays: by their names; buffers that follow from the architecture may be among them.
    shapes: the tree to fill, as shapes.

  Raises:
    ValueError: as `check`.
  """
  wanted = list(entries(shapes, convention, mask_k_bias))
  arrays = {name: np.asarray(array) for name, array in arrays.items()}
  check(wanted, arrays)
  params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
  leaves = by_path(params)
  for entry in wanted:
    if not entry.copy_of:
      leaves[entry.path][entry.box] = entry.to_ours(arrays[entry.name])
  return params


def by_path(tree: Params | None) -> dict[tuple[str, ...], Any]:
  """The leaves of nested dicts."""
  return {tuple(key.key for key in path): leaf
          for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def buffers(settings: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """What the reference stores of a ViT beside its parameters, by official name.

  Args:
    settings: arguments of `VisionTransformer`.

  Returns:
    `rope_embed.periods` [head width / 4], and where keys have no bias for each block the mask that
    takes it out, [3 D], ones and zeros; all float32.
  """
  width, rope = settings["width"], dict(settings.get("rope") or {}, dtype="float32")
  result = {"rope_embed.periods": Rope(width // settings["num_heads"], **rope).periods}
  if settings.get("mask_k_bias", False) and settings.get("qkv_bias", True):
    mask = np.repeat(np.float32([1, 0, 1]), width)
    result |= {f"blocks.{i}.attn.qkv.bias_mask": mask for i in range(settings["depth"])}
  return result


def contradictions(arrays: Mapping[str, np.ndarray], settings: Mapping[str, Any]) -> list[str]:
  """The buffers among `arrays`, under any prefix, that another architecture must have made."""
  expected = {BUFFERS.search(name)[2]: value for name, value in buffers(settings).items()}
  result = []
  for name in filter(BUFFERS.search, arrays):
    value, right = np.asarray(arrays[name], np.float32), expected.get(BUFFERS.search(name)[2])
    # Periods may have been rounded to bfloat16, and the zeros of a mask may be NaN.
    if right is None or value.shape != right.shape or not np.allclose(
        np.nan_to_num(value), right, rtol=2**-8, atol=0):
      result.append(f"{name} contradicts the settings of this model")
  return result
