"""The settings beside weights, held against what a model takes and what the arrays show."""

import inspect
import pathlib
import typing
from collections.abc import Mapping
from typing import Any

import numpy as np

from dinov3_jax.models.convnext import ConvNeXt
from dinov3_jax.models.layers import hidden_width
from dinov3_jax.models.rope import Rope
from dinov3_jax.models.vit import VisionTransformer
from dinov3_jax.weights import huggingface
from dinov3_jax.weights.architecture import measure
from dinov3_jax.weights.contents import is_count, is_number, read_json
from dinov3_jax.weights.naming import Convention

OURS = "dinov3_jax"  # the entry of `config.json` in our exports
# Hugging Face's words for sizes; in our own settings they are called as here.
THEIRS = dict(width="hidden_size", depth="num_hidden_layers", hidden="intermediate_size",
              storage_tokens="num_register_tokens", in_channels="num_channels",
              dims="hidden_sizes")
_LEAST = dict(storage_tokens=0, adapter_rank=0, norm_eps=0, layerscale=0, drop_path=0, base=0,
              shift=0)
_TYPES = (int, float, str, bool, dict, type(None))


def read(folder: pathlib.Path, convention: Convention, arrays: Mapping[str, np.ndarray]
         ) -> dict[str, Any] | None:
  """The arguments of a network as `config.json` states them; None where it does not.

  Args:
    folder: of the weights.
    convention: of the arrays' names; only Hugging Face's have their settings in a file.
    arrays: of the same file; what they show must agree.

  Raises:
    ValueError: one line; a document that is no JSON, settings that no model has, or sizes that are
      not those of the arrays. So nothing is built at a size that the file does not have.
  """
  path = folder / huggingface.CONFIG
  config = read_json(path) if path.is_file() else {}
  ours = OURS in config
  if not ours and (not config or convention != "huggingface"):
    return None
  try:
    if ours:
      settings = config[OURS]
      validate(settings)
    else:
      settings = huggingface.settings(config)
  except ValueError as error:
    said = str(error).removeprefix(f"{huggingface.CONFIG} ")
    raise ValueError(f"{path}{': ' if said == str(error) else ' '}{said}") from error
  said = _with_defaults(settings)
  if "depths" not in settings:
    said["hidden"] = hidden_width(said["ffn"], said["width"], said["ffn_ratio"], said["ffn_align"])
  for key, found in measure(arrays, convention).items():
    stated = list(said[key]) if isinstance(found, list) and key in said else said.get(key)
    if key in said and stated != found:
      word = key if ours else THEIRS.get(key, key)
      raise ValueError(f"{path.name} says {word} {stated}, the file's arrays have {found}")
    if key not in said:
      raise ValueError(f"{path.name} is that of another kind of model than the file's arrays")
  return settings


def _with_defaults(settings: Mapping[str, Any]) -> dict[str, Any]:
  network = ConvNeXt if "depths" in settings else VisionTransformer
  parameters = inspect.signature(network.__init__).parameters
  return {name: p.default for name, p in parameters.items()} | dict(settings)


def validate(settings: Any):
  """Holds settings that come from a file against what `models.variants.build` takes.

  Raises:
    ValueError: one line with everything that is missing, unknown or of another type.
  """
  if not isinstance(settings, dict):
    raise ValueError(f"the settings of a model are an object, not {settings!r:.60}")
  network = ConvNeXt if "depths" in settings else VisionTransformer
  problems = _problems(settings, network.__init__, {"self", "rngs", "depths", "dims"})
  if isinstance(settings.get("rope"), dict):
    problems += [f"rope: {problem}" for problem in
                 _problems(settings["rope"], Rope.__init__, {"self", "head_dim"})]
  for key in ("depths", "dims") if network is ConvNeXt else ():
    if not huggingface.is_stages(settings.get(key)):
      problems.append(f"{key} must be four whole numbers, not {settings.get(key)!r:.60}")
  for key, known in dict(stem=("patch", "conv"), ffn=("mlp", "swiglu"),
                         norm=("layernorm", "rmsnorm")).items():
    if network is VisionTransformer and isinstance(settings.get(key), str) and (
        settings[key] not in known):
      problems.append(f"{key} must be {' or '.join(known)}, not {settings[key]!r:.60}")
  if problems:
    raise ValueError("these are no settings of a model: " + "; ".join(problems))


def _problems(settings, function, elsewhere):
  known = {name: p for name, p in inspect.signature(function).parameters.items()
           if name not in elsewhere}
  problems = [f"there is no {name:.60}" for name in settings if name not in {*known, *elsewhere}]
  for name, parameter in known.items():
    if name not in settings:
      if parameter.default is inspect.Parameter.empty:
        problems.append(f"{name} is missing")
      continue
    value = settings[name]
    types = {x for x in typing.get_args(parameter.annotation) or (parameter.annotation,)
             if x in _TYPES}
    fits = [isinstance(value, kind) for kind in types - {int, float}]
    if int in types:
      fits.append(is_count(value, _LEAST.get(name, 1)))
    if float in types:
      fits.append(is_number(value) and (value > 0 or value == _LEAST.get(name)))
    if not any(fits):
      problems.append(f"{name} cannot be {value!r:.60}")
  return problems
