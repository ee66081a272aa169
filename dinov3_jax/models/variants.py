"""The table of all sizes (paper, table 2 and section 5), and of the weights published for them."""

import dataclasses
import inspect
import math
from collections.abc import Mapping
from typing import Any

from flax import nnx

from dinov3_jax.models.convnext import STRIDE, ConvNeXt
from dinov3_jax.models.foreign import Foreign
from dinov3_jax.models.layers import hidden_width
from dinov3_jax.models.rope import Rope
from dinov3_jax.models.vit import VisionTransformer

REFERENCE_ARCHITECTURES = {
    "vit_small": dict(width=384, depth=12, num_heads=6),
    "vit_base": dict(width=768, depth=12, num_heads=12),
    "vit_large": dict(width=1024, depth=24, num_heads=16),
    "vit_so400m": dict(width=1152, depth=27, num_heads=18, ffn_ratio=3.777777778),
    "vit_huge2": dict(width=1280, depth=32, num_heads=20),
    "vit_giant2": dict(width=1536, depth=40, num_heads=24),
    "vit_7b": dict(width=4096, depth=40, num_heads=32, ffn_ratio=3.0),
}
"""What `student.arch` means in the reference's training settings."""


@dataclasses.dataclass(frozen=True)
class Release:
  """Weights that were published for a variant.

  Attributes:
    digest: the beginning of its hash, which ends the name of the reference's file.
    repo: the repository on Hugging Face; None where there is none.
    changes: where its architecture is not the variant's.
  """

  digest: str
  repo: str | None
  changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Variant:
  """One size.

  Attributes:
    settings: arguments of `VisionTransformer` or `ConvNeXt`, those of the reference's hub.
    releases: by the data they were trained on, "lvd1689m" (web images) and "sat493m" (satellite).
  """

  settings: Mapping[str, Any]
  releases: Mapping[str, Release]


def _releases(name: str, **digests: str) -> dict[str, Release]:
  return {data: Release(digest, f"facebook/dinov3-{name}-pretrain-{data}")
          for data, digest in digests.items()}


VIT = dict(ffn_ratio=4.0, norm_eps=1e-5, layerscale=1e-5, storage_tokens=4, mask_k_bias=True,
           rope=dict(base=100.0, rescale=2.0, dtype="float32"))
SMALL, BASE, LARGE, HUGE, SEVEN_B = (
    VIT | REFERENCE_ARCHITECTURES[f"vit_{size}"]
    for size in ("small", "base", "large", "huge2", "7b"))
GATED = dict(ffn="swiglu", ffn_ratio=6.0)
OWN_LOCAL_NORM = dict(untie_global_and_local_cls_norm=True)


def _convnext(size: str, depths: tuple, dims: tuple, digest: str) -> Variant:
  return Variant(dict(depths=depths, dims=dims), _releases(f"convnext-{size}", lvd1689m=digest))


VARIANTS = {
    "vits16": Variant(SMALL, _releases("vits16", lvd1689m="08c60483")),
    "vits16plus": Variant(SMALL | GATED, _releases("vits16plus", lvd1689m="4057cbaa")),
    "vitb16": Variant(BASE, _releases("vitb16", lvd1689m="73cec8be")),
    "vitl16": Variant(LARGE, {
        **_releases("vitl16", lvd1689m="8aa4cbdd"),
        "sat493m": Release("eadcf0ff", "facebook/dinov3-vitl16-pretrain-sat493m", OWN_LOCAL_NORM)}),
    "vitl16plus": Variant(LARGE | GATED, {"lvd1689m": Release("46503df0", None)}),
    "vith16plus": Variant(HUGE | GATED, _releases("vith16plus", lvd1689m="7c1da9a5")),
    "vit7b16": Variant(
        SEVEN_B | OWN_LOCAL_NORM | dict(ffn="swiglu", ffn_align=64, qkv_bias=False),
        _releases("vit7b16", lvd1689m="a955f4ea", sat493m="a6675841")),
    "convnext_tiny": _convnext("tiny", (3, 3, 9, 3), (96, 192, 384, 768), "21b726bb"),
    "convnext_small": _convnext("small", (3, 3, 27, 3), (96, 192, 384, 768), "296db49d"),
    "convnext_base": _convnext("base", (3, 3, 27, 3), (128, 256, 512, 1024), "801f2ba9"),
    "convnext_large": _convnext("large", (3, 3, 27, 3), (192, 384, 768, 1536), "61fa432d"),
}


def variant(name: str) -> Variant:
  """The table's row.

  Raises:
    ValueError: for a name that is not in it.
  """
  if name not in VARIANTS:
    raise ValueError(f"there is no model {name!r}: use one of {', '.join(VARIANTS)}")
  return VARIANTS[name]


def build(settings: Mapping[str, Any], *, rngs: nnx.Rngs) -> VisionTransformer | ConvNeXt | Foreign:
  """The network with the given arguments: a ConvNeXt if they name `depths`, somebody else's network
  if they name a `callable`, else a ViT."""
  if "callable" in settings:
    return Foreign(**settings, rngs=rngs)
  return (ConvNeXt if "depths" in settings else VisionTransformer)(**settings, rngs=rngs)


def stride(settings: Mapping[str, Any]) -> int:
  """The side in pixels of one of a network's patch tokens; arguments of `build`."""
  return STRIDE if "depths" in settings else settings["patch_size"]


def width(settings: Mapping[str, Any]) -> int:
  """How many features a network's tokens have; arguments of `build`."""
  return settings["dims"][-1] if "depths" in settings else settings["width"]


def make_model(name: str, *, rngs: nnx.Rngs, **changes) -> VisionTransformer | ConvNeXt:
  """A freshly initialised model of the table.

  Args:
    name: a key of `VARIANTS`.
    changes: arguments in place of the variant's, for instance those of one of its releases.

  Raises:
    ValueError: for a name that is not in the table.
  """
  return build(variant(name).settings | changes, rngs=rngs)


def feed_forward(kind: str, width: int, hidden: int) -> dict[str, Any]:
  """The arguments that give a feed-forward network of a known hidden width.

  Args:
    kind: "mlp" or "swiglu".
    width: of the tokens.
    hidden: of its hidden layer; `hidden_width` of the result gives it back.
  """
  full = math.ceil(1.5 * hidden) if kind == "swiglu" else hidden
  ratio = full / width
  ratio = ratio if int(width * ratio) == full else math.nextafter(ratio, math.inf)
  return dict(ffn=kind, ffn_ratio=ratio, ffn_align=1)


def channels(model: VisionTransformer | ConvNeXt) -> int:
  """How many channels the images of a model have."""
  if isinstance(model, ConvNeXt):
    return model.downsample["0"].conv.kernel.shape[-2]
  stem = model.patch_embed
  return (stem.convs["0"] if hasattr(stem, "convs") else stem).kernel.shape[-2]


# What no trained model shows: initial values, and what only training uses.
UNSEEN = {"self", "rngs", "layerscale", "drop_path", "untie_global_and_local_cls_norm",
          "adapter_rank"}
UNSEEN_ROPE = {"shift", "jitter", "rescale", "dtype"}


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
  """In words, where the settings of two models make other networks or other features of them."""
  there, here = _traits(there), _traits(here)
  return [f"{key} is {there.get(key, 'unknown')} there, {here.get(key, 'unknown')} here"
          for key in here | there if there.get(key) != here.get(key)]


def _traits(settings):
  if "depths" in settings:
    return dict(depths=tuple(settings["depths"]), dims=tuple(settings["dims"]),
                in_channels=settings.get("in_channels", 3))
  if "callable" in settings:
    return dict(callable=settings["callable"])
  defaults = {name: p.default for name, p in
              inspect.signature(VisionTransformer.__init__).parameters.items()}
  s = defaults | dict(settings)
  s["hidden_width"] = hidden_width(s["ffn"], s["width"], s.pop("ffn_ratio"), s.pop("ffn_align"))
  s["mask_k_bias"] = s["mask_k_bias"] and s["qkv_bias"]
  rope = dataclasses.asdict(Rope(s["width"] // s["num_heads"], **(s.pop("rope") or {})))
  s |= {f"rope.{key}": value for key, value in rope.items() if key not in UNSEEN_ROPE}
  return {key: value for key, value in s.items() if key not in UNSEEN}
