"""dino.txt in files of weights: the official names, vision head and text tower alone."""

import json
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from dinov3_jax.text.networks import Params, abstract_modules, from_official_tree, official_tree
from dinov3_jax.weights import files, naming, torch_file

BESIDE = "dinotxt.json"  # the settings, which our exports have beside the arrays
HEAD_WIDTH = 64  # of the text tower's attention, where nothing says it
TOWER, HEAD = "text_model.backbone.", "visual_model.head."


def open_arrays(path: str | os.PathLike) -> dict[str, Any]:
  """The arrays of a file by official name, not read yet.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: it is damaged, or holds no text tower.
    ModuleNotFoundError: a PyTorch file, and no PyTorch.
  """
  content = files.open_content(path)
  for key in ("model", "state_dict"):
    if isinstance(content.get(key), Mapping):
      content = content[key]
  if f"{TOWER}token_embedding.weight" not in content:
    raise ValueError(f"{path} holds no text tower of dino.txt (no {TOWER}token_embedding.weight)")
  return {name: x if isinstance(x, np.ndarray) else torch_file.as_numpy(name, x)
          for name, x in content.items()}


def settings_of(path: str | os.PathLike, arrays: Mapping[str, np.ndarray]) -> ConfigDict:
  """The sections `vision_head`, `text`, `images`, `backbone` and the number `embedding`.

  They are what an export of ours says beside its arrays; of others, such as the released file,
  the shapes say all but the number of heads, each of which is taken to be 64 wide, the backbone,
  which is taken to be ViT-L/16, and the size of its images, 224 pixels.

  Raises:
    ValueError: arrays that make no dino.txt.
  """
  beside = files.find(path).parent / BESIDE
  if beside.is_file():
    try:
      return ConfigDict(json.loads(beside.read_text()))
    except ValueError as error:
      raise ValueError(f"{beside} is damaged: {error}") from error
  shape = lambda name, axes: _shape(arrays, name, axes)
  vocabulary, width = shape(f"{TOWER}token_embedding.weight", 2)
  shape(f"{HEAD}ln_final.weight", 1)[0]
  if width % HEAD_WIDTH:
    raise ValueError(f"the text tower of {path} is {width} wide, no multiple of {HEAD_WIDTH}: its "
                     f"number of heads cannot be told without a {BESIDE} beside it")
  return ConfigDict(dict(
    embedding=shape("text_model.head.linear_projection.weight", 2)[0],
    vision_head=dict(depth=_depth(arrays, HEAD), ffn_ratio=4.0, layerscale=1e-5, drop_path=0.0),
    text=dict(vocabulary=vocabulary, context=shape(f"{TOWER}positional_embedding", 2)[0],
              width=width, depth=_depth(arrays, TOWER), num_heads=width // HEAD_WIDTH,
              ffn_ratio=shape(f"{TOWER}blocks.0.feed_forward.fc1.weight", 2)[0] / width),
    images=dict(size=224), backbone=dict(weights="lvd1689m", model="vitl16", digest="")))


def params_of(config: ConfigDict, backbone: Mapping[str, Any], arrays: Mapping[str, np.ndarray],
              path: str | os.PathLike) -> Params:
  """The trained parameters that the arrays fill, every one of them.

  Args:
    config: from `settings_of`.
    backbone: settings of the backbone.
    arrays: from `open_arrays`.
    path: of the file, for errors.

  Raises:
    ValueError: one line with every array that is missing, of no use, or of another shape.
  """
  shapes = official_tree(abstract_modules(config, backbone)[1])
  try:
    return from_official_tree(naming.unflatten(arrays, shapes))
  except ValueError as error:
    raise ValueError(f"{path}: {error}") from error


def write(out: pathlib.Path, config: ConfigDict, params: Params, format: str) -> list[pathlib.Path]:
  """Writes the arrays under their official names, and the settings beside them.

  Args:
    out: a folder.
    config: settings with the sections that `settings_of` returns.
    params: the trained parameters.
    format: "official", a .pth file, or "safetensors".

  Returns:
    The files.
  """
  arrays = naming.flatten(official_tree(params))
  kept = {name: config[name].to_dict() for name in ("vision_head", "text", "images", "backbone")}
  beside = out / BESIDE
  beside.write_text(json.dumps(kept | dict(embedding=config.embedding), indent=2) + "\n")
  if format == "official":
    import torch
    path = out / "dinotxt.pth"
    torch.save({name: torch.from_numpy(np.array(x)) for name, x in arrays.items()}, path)
  else:
    from safetensors.numpy import save_file
    path = out / "dinotxt.safetensors"
    save_file({name: np.ascontiguousarray(x) for name, x in arrays.items()}, path)
  return [beside, path]


def _shape(arrays: Mapping[str, np.ndarray], name: str, axes: int) -> tuple[int, ...]:
  if name not in arrays or arrays[name].ndim != axes:
    raise ValueError(f"{name} is missing or has not {axes} axes: this is no whole dino.txt")
  return arrays[name].shape


def _depth(arrays: Mapping[str, np.ndarray], prefix: str) -> int:
  numbers = {int(match[1]) for name in arrays
             if (match := re.match(rf"{re.escape(prefix)}blocks\.(\d+)\.", name))}
  if not numbers:
    raise ValueError(f"{prefix}blocks are missing: this is no whole dino.txt")
  return max(numbers) + 1
