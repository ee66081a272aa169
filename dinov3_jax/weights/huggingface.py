"""Hugging Face's settings of a DINOv3 model as ours and back, and its repositories."""

import pathlib
import re
from collections.abc import Mapping
from typing import Any

from dinov3_jax.models.convnext import EPS
from dinov3_jax.models.layers import hidden_width
from dinov3_jax.models.variants import feed_forward
from dinov3_jax.weights import safetensors_file, torch_file
from dinov3_jax.weights.contents import is_count, is_number, require

CONFIG = "config.json"
SUFFIXES = (safetensors_file.SUFFIX, *torch_file.SUFFIXES)


def settings(config: Mapping[str, Any]) -> dict[str, Any]:
  """The arguments of our network for one of theirs.

  Args:
    config: of `config.json`; what it leaves out has their default.

  Returns:
    Arguments of `VisionTransformer` or `ConvNeXt`.

  Raises:
    ValueError: another kind of model, or a setting that we do not have.
  """
  kind = config.get("model_type")
  count = lambda key, default, least=1: require(
      config, key, default, lambda x: is_count(x, least), f"a whole number from {least} to 2**31")
  flag = lambda key, default: require(config, key, default, lambda x: isinstance(x, bool),
                                      "true or false")
  positive = lambda key, default: require(
      config, key, default, lambda x: is_number(x) and x > 0, "a positive number")
  if kind == "dinov3_convnext":
    _require(config, hidden_act="gelu", layer_norm_eps=EPS)
    stages = lambda key, default: tuple(require(config, key, default, is_stages,
                                                "four whole numbers"))
    return dict(depths=stages("depths", (3, 3, 9, 3)),
                dims=stages("hidden_sizes", (96, 192, 384, 768)),
                in_channels=count("num_channels", 3))
  if kind != "dinov3_vit":
    raise ValueError(f"{CONFIG} is that of a {kind!r:.60}, not of a dinov3_vit or dinov3_convnext")
  gated, qkv_bias = flag("use_gated_mlp", False), flag("query_bias", True)
  key_bias = flag("key_bias", False)
  _require(config, hidden_act="silu" if gated else "gelu", value_bias=qkv_bias,
           key_bias=key_bias and qkv_bias)
  width, hidden = count("hidden_size", 384), count("intermediate_size", 1536)
  rope = {ours: require(config, f"pos_embed_{ours}", default,
                        lambda x: x is None or (is_number(x) and x >= 0), "a number, or null")
          for ours, default in dict(shift=None, jitter=None, rescale=2.0).items()}
  return dict(
      patch_size=count("patch_size", 16), in_channels=count("num_channels", 3),
      width=width, depth=count("num_hidden_layers", 12),
      num_heads=count("num_attention_heads", 6),
      **feed_forward("swiglu" if gated else "mlp", width, hidden),
      qkv_bias=qkv_bias, mask_k_bias=qkv_bias and not key_bias,
      proj_bias=flag("proj_bias", True), ffn_bias=flag("mlp_bias", True),
      norm_eps=positive("layer_norm_eps", 1e-5),
      storage_tokens=count("num_register_tokens", 0, 0),
      rope=dict(base=positive("rope_theta", 100.0), **rope))


def is_stages(value: Any) -> bool:
  """Whether a value is what a ConvNeXt has for each of its four stages."""
  return isinstance(value, list | tuple) and len(value) == 4 and all(map(is_count, value))


def _require(config, **values):
  wrong = [f"{key}={config[key]!r:.60} (only {value!r})" for key, value in values.items()
           if config.get(key, value) != value]
  if wrong:
    raise ValueError(f"{CONFIG} asks for what is not supported here: {', '.join(wrong)}")


def config(settings: Mapping[str, Any], image_size: int = 224) -> dict[str, Any]:
  """What `config.json` says of a network of ours; the way back of `settings`.

  What only training uses stays behind, and RoPE is in float32 there.

  Args:
    settings: arguments of `VisionTransformer` or `ConvNeXt`.
    image_size: that images should have, pixels.

  Raises:
    ValueError: one line with everything that their network cannot do.
  """
  if "depths" in settings:
    return dict(architectures=["DINOv3ConvNextModel"], model_type="dinov3_convnext",
                depths=list(settings["depths"]), hidden_sizes=list(settings["dims"]),
                num_channels=settings.get("in_channels", 3), hidden_act="gelu", layer_norm_eps=EPS,
                image_size=image_size, dtype="float32")
  s, rope = settings, settings.get("rope") or {}
  wrong = [name for name, differs in {
      "stem=conv": s.get("stem", "patch") != "patch",
      "norm=rmsnorm": s.get("norm", "layernorm") != "layernorm",
      "untie_cls_and_patch_norms": s.get("untie_cls_and_patch_norms", False),
      "layerscale=0": not s.get("layerscale", 1e-5),
      "rope.min_period": rope.get("min_period") is not None,
      "rope.normalize": rope.get("normalize", "separate") != "separate"}.items() if differs]
  if wrong:
    raise ValueError(f"Hugging Face's DINOv3 has no {', '.join(wrong)}: export with --format "
                     "safetensors, which keeps every model as it is")
  gated, qkv_bias = s.get("ffn", "mlp") == "swiglu", s.get("qkv_bias", True)
  hidden = hidden_width(s.get("ffn", "mlp"), s["width"], s.get("ffn_ratio", 4.0),
                        s.get("ffn_align", 8))
  return dict(
      architectures=["DINOv3ViTModel"], model_type="dinov3_vit", hidden_size=s["width"],
      num_hidden_layers=s["depth"], num_attention_heads=s["num_heads"], intermediate_size=hidden,
      hidden_act="silu" if gated else "gelu", use_gated_mlp=gated, query_bias=qkv_bias,
      value_bias=qkv_bias, key_bias=qkv_bias and not s.get("mask_k_bias", False),
      proj_bias=s.get("proj_bias", True), mlp_bias=s.get("ffn_bias", True),
      layer_norm_eps=s.get("norm_eps", 1e-6), num_register_tokens=s.get("storage_tokens", 0),
      patch_size=s.get("patch_size", 16), num_channels=s.get("in_channels", 3),
      rope_theta=rope.get("base", 100.0), layerscale_value=1.0, image_size=image_size,
      dtype="float32",
      **{f"pos_embed_{name}": rope.get(name) for name in ("shift", "jitter", "rescale")})


def is_repo(name: str) -> bool:
  """Whether `name` looks like a repository of the hub, "owner/name"."""
  return bool(re.fullmatch(r"[\w.-]+/[\w.-]+", name)) and not name.endswith(SUFFIXES)


def download(repo: str) -> pathlib.Path:
  """The folder of a repository of the hub, fetched if it is not in its cache.

  The token is that of `hf auth login` or of the environment's HF_TOKEN.

  Raises:
    PermissionError: the repository is gated, and this account has no access.
    FileNotFoundError: there is no such repository, or the hub cannot be reached.
  """
  from huggingface_hub import errors, snapshot_download
  page = f"https://huggingface.co/{repo}"
  try:
    folder = pathlib.Path(snapshot_download(repo, allow_patterns=["*.json", "*.safetensors"]))
    if not any(folder.glob("*.safetensors")):  # many others have the same weights twice
      snapshot_download(repo, allow_patterns=[f"*{suffix}" for suffix in torch_file.SUFFIXES])
    return folder
  except errors.GatedRepoError as error:
    raise PermissionError(f"{repo} is gated: ask for access on {page}, then log in with `hf auth "
                          "login` or set HF_TOKEN") from error
  except errors.RepositoryNotFoundError as error:
    raise FileNotFoundError(f"{repo} is neither a path here nor a repository that this account can "
                            f"see: check {page}, and log in with `hf auth login`") from error
  except (errors.LocalEntryNotFoundError, errors.HfHubHTTPError, OSError) as error:
    raise FileNotFoundError(f"{repo} is not in the local cache, and the hub cannot be reached: "
                            "download it elsewhere and give its folder") from error
