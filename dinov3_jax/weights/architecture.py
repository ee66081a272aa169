"""Which model a set of arrays is: by the table of variants, else by their names and shapes."""

import logging
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import nnx

from dinov3_jax.models.variants import VARIANTS, build, feed_forward
from dinov3_jax.weights import naming
from dinov3_jax.weights.naming import Convention

log = logging.getLogger(__name__)

Arrays = Mapping[str, np.ndarray]
Settings = dict[str, Any]
UNKNOWN = ("these weights are those of no published model, and their architecture cannot be told: "
           "{}; say which model they are, or put a config.json beside them")
# The names of what tells the sizes, in the reference's files and in Hugging Face's.
WORDS = {
    "official": dict(
        cls="cls_token", storage="storage_tokens", patch="patch_embed.proj.weight",
        block=r"blocks\.(\d+)\.", first="blocks.0.", up="mlp.fc1", gated="mlp.w1", ls="ls1.gamma",
        attention="attn.proj", stage=r"stages\.{}\.(\d+)\.",
        conv="downsample_layers.{}.{}.weight"),
    "huggingface": dict(
        cls="embeddings.cls_token", storage="embeddings.register_tokens",
        patch="embeddings.patch_embeddings.weight", block=r"layer\.(\d+)\.", first="layer.0.",
        up="mlp.up_proj", gated="mlp.gate_proj", ls="layer_scale1.lambda1",
        attention="attention.o_proj", stage=r"stages\.{}\.layers\.(\d+)\.",
        conv="stages.{}.downsample_layers.{}.weight"),
}


def convention_of(arrays: Arrays) -> Convention:
  """Whose names these are."""
  hugging = not {"embeddings.cls_token", "layer_norm.weight"}.isdisjoint(arrays)
  return "huggingface" if hugging else "official"


def measure(arrays: Arrays, convention: Convention) -> dict[str, Any]:
  """The sizes that names and shapes show, whatever any settings say.

  Returns:
    Of a ViT `width`, `depth`, `ffn`, `hidden` (of the feed-forward network), `stem`, `patch_size`,
    `in_channels` and `storage_tokens`; of a ConvNeXt lists `depths` and `dims`, and `in_channels`.

  Raises:
    ValueError: an array that tells one of these is missing or has another number of axes.
  """
  words = WORDS[convention]
  shape = lambda name, axes: _shape(arrays, name, axes)
  if words["conv"].format(0, 0) in arrays:
    convs = [shape(words["conv"].format(i, 1 if i else 0), 4) for i in range(4)]
    return dict(depths=[_count(arrays, words["stage"].format(i)) for i in range(4)],
                dims=[x[0] for x in convs], in_channels=convs[0][1])
  first = words["first"]
  gated = first + words["gated"] + ".weight" in arrays
  up = first + words["gated" if gated else "up"] + ".weight"
  storage = arrays.get(words["storage"])
  storage = 0 if storage is None or not storage.size else shape(words["storage"], 3)[1]
  sizes = dict(width=shape(words["cls"], 3)[2], depth=_count(arrays, words["block"]),
               ffn="swiglu" if gated else "mlp", hidden=shape(up, 2)[0], storage_tokens=storage)
  stages = _count(arrays, r"patch_embed\.convs\.(\d+)\.")
  if stages:
    return sizes | dict(stem="conv", patch_size=2**stages,
                        in_channels=shape("patch_embed.convs.0.weight", 4)[1])
  patch = shape(words["patch"], 4)
  if patch[2] != patch[3]:
    raise ValueError(f"{words['patch']} is {list(patch)}, and patches must be square")
  return sizes | dict(stem="patch", patch_size=patch[2], in_channels=patch[1])


def _shape(arrays: Arrays, name: str, axes: int) -> tuple[int, ...]:
  if name not in arrays:
    raise ValueError(f"these weights do not fit any architecture; missing: {name}")
  # An empty array can claim any length of its other sides.
  if arrays[name].ndim != axes or not arrays[name].size:
    raise ValueError(f"these weights do not fit any architecture; {name} is "
                     f"{list(arrays[name].shape)}, expected {axes} axes, none empty")
  return arrays[name].shape


def _count(arrays: Arrays, pattern: str) -> int:
  """How many blocks there are, of which some may lack arrays."""
  return len({found[1] for found in map(re.compile(pattern).match, arrays) if found})


def identify(arrays: Arrays, convention: Convention) -> Settings:
  """The settings of a model from its arrays alone.

  Those of the table's variant that has just these names and shapes; else what the shapes show. Then
  a warning says what they are, because some of it is assumed: heads of 64 unless the file has the
  periods of RoPE, `norm_eps` 1e-5, and a RoPE base of 100 unless the periods show another one.

  Raises:
    ValueError: the arrays do not tell.
  """
  try:
    sizes = measure(arrays, convention)
    known = _in_table(arrays, convention, sizes)
    if known is not None:
      return known
    settings = sizes if "depths" in sizes else _vit(arrays, convention, sizes)
  except ValueError as error:
    raise ValueError(UNKNOWN.format(error)) from error
  log.warning("of no published model: taken from the shapes of the arrays, and from the released "
              "models where these show nothing: %s", settings)
  return with_norms_of(arrays, settings)


def _in_table(arrays: Arrays, convention: Convention, sizes: Mapping[str, Any]) -> Settings | None:
  there = {name: array.shape for name, array in arrays.items()
           if array.size and not naming.BUFFERS.search(name)}
  for row in VARIANTS.values():
    stated = {key: list(x) if isinstance(x, tuple) else x for key, x in row.settings.items()}
    if any(stated.get(key) != sizes.get(key) for key in ("width", "depth", "depths", "dims")):
      continue  # without the time that its shapes take
    settings = with_norms_of(arrays, row.settings)
    entries = entries_of(abstract(settings)[1], convention, settings)
    if there == {e.name: e.theirs for e in entries if e.name in there or not e.copy_of}:
      return settings
  return None


def _vit(arrays: Arrays, convention: Convention, sizes: dict[str, Any]) -> Settings:
  words, first = WORDS[convention], WORDS[convention]["first"]
  sizes = dict(sizes)
  width, hidden, ffn = sizes["width"], sizes.pop("hidden"), sizes.pop("ffn")
  heads, base = _heads_and_base(arrays, width)
  qkv_bias = first + ("attn.qkv.bias" if convention == "official" else
                      "attention.q_proj.bias") in arrays
  final = "norm.weight" in arrays and "norm.bias" in arrays
  return sizes | feed_forward(ffn, width, hidden) | dict(
      num_heads=heads, qkv_bias=qkv_bias,
      mask_k_bias=qkv_bias and _masks_k_bias(arrays, convention),
      proj_bias=f"{first}{words['attention']}.bias" in arrays,
      ffn_bias=f"{first}{words['gated' if ffn == 'swiglu' else 'up']}.bias" in arrays,
      norm="layernorm" if final else "rmsnorm", norm_eps=1e-5,
      layerscale=1e-5 if first + words["ls"] in arrays else 0.0,
      untie_cls_and_patch_norms="cls_norm.weight" in arrays,
      rope=dict(base=base, dtype="float32"))


def _heads_and_base(arrays: Arrays, width: int) -> tuple[int, float]:
  periods = arrays.get("rope_embed.periods")
  if periods is None:
    if width % 64:
      raise ValueError(f"a width of {width} is no whole number of heads of 64")
    return width // 64, 100.0
  n = periods.size
  if periods.ndim != 1 or not n or width % (4 * n):
    raise ValueError(f"rope_embed.periods is {list(periods.shape)}, which does not fit a width of "
                     f"{width}")
  values = np.asarray(periods, np.float64)
  if n == 1 or np.allclose(values, 100.0 ** (np.arange(n) / n), rtol=2**-8, atol=0):
    return width // (4 * n), 100.0
  base = float(values[-1]) ** (n / (n - 1)) if values[-1] > 0 else 0.0
  if not 1 < base < 1e9:
    raise ValueError("rope_embed.periods are no powers of a base")
  return width // (4 * n), float(f"{base:.4g}")


def _masks_k_bias(arrays: Arrays, convention: Convention) -> bool:
  """Whether the keys have no bias: the file says so, or has none but zeros in the first block."""
  if convention == "huggingface":
    return "layer.0.attention.k_proj.bias" not in arrays
  bias = arrays["blocks.0.attn.qkv.bias"]
  return "blocks.0.attn.qkv.bias_mask" in arrays or (
      bias.ndim == 1 and not np.nan_to_num(
          np.asarray(bias[len(bias) // 3:len(bias) // 3 * 2], np.float32)).any())


def abstract(settings: Mapping[str, Any]) -> tuple[nnx.GraphDef, naming.Params]:
  """The graph of a network, and its parameters as shapes; no memory is taken."""
  graph, state = nnx.split(nnx.eval_shape(lambda: build(settings, rngs=nnx.Rngs(0))))
  return graph, nnx.to_pure_dict(state)


def with_norms_of(arrays: Arrays, settings: Mapping[str, Any]) -> Settings:
  """The settings, with the norm of local crops' CLS token where the arrays have it."""
  own = "local_cls_norm.weight" in arrays
  return dict(settings) if "depths" in settings else {
      **settings, "untie_global_and_local_cls_norm": own}


def entries_of(shapes: naming.Params, convention: Convention, settings: Mapping[str, Any]
               ) -> list[naming.Entry]:
  """Every array that a model's file should have."""
  return list(naming.entries(shapes, convention, settings.get("mask_k_bias", False)))
