"""Writing a model in the formats that others read; see `dinov3_jax.export`."""

import json
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

from dinov3_jax.data.preprocess import Preprocess, preprocess
from dinov3_jax.weights import files, huggingface, loading, naming, stored_settings

Format = Literal["hf", "official", "safetensors"]
HEADS = ("dino_head", "ibot_head")
SHARD_BYTES = 5 * 10**9


def export(checkpoint: loading.Weights, format: Format, out: str | os.PathLike, *,
           name: str | None = None, network: str = "teacher", heads: bool = False
           ) -> list[pathlib.Path]:
  """Writes a model into the folder `out`.

  Args:
    checkpoint: as `weights` of `dinov3_jax.load`.
    format: "hf", "official" or "safetensors"; see the module.
    out: new or empty; `config.json` and `preprocessor_config.json` go there, too.
    name: which model it is, where the weights do not say so.
    network: of our trainer's checkpoint, "teacher" or "student".
    heads: the heads of DINO and iBOT, too, which only our trainer's checkpoints have: in "official"
      the file is then what the reference's trainer writes, {"teacher": {"backbone...",
      "dino_head...", "ibot_head..."}} whichever network it is; in "safetensors" the names begin
      with those words; in "hf" a second file, `heads.safetensors`, holds them.

  Returns:
    The files written.

  Raises:
    ValueError: the folder is not empty or cannot be written, the checkpoint has no heads, or the
      format cannot hold this model; else as `dinov3_jax.load`.
    ModuleNotFoundError: "official" without PyTorch.
  """
  out = checked_out(out)
  if format == "official":
    require_torch()
  path = loading.locate(name, checkpoint)
  prepare = preprocess(path)
  with jax.default_device(jax.local_devices(backend="cpu")[0]):
    settings, params = loading.read(name, path, jnp.float32, None, network)
    head_params = _read_heads(path, network) if heads else {}
  if "callable" in settings:
    raise ValueError(f"{checkpoint}: the backbone is somebody else's network, "
                     f"{settings['callable']}, which has weights of its own: nothing is exported")
  if format == "official" and settings.get("stem", "patch") != "patch":
    raise ValueError("the reference has no convolutional stem: export with --format safetensors, "
                     "which keeps every model as it is")
  config = {stored_settings.OURS: settings} if format != "hf" else huggingface.config(
      settings, prepare.size if isinstance(prepare.size, int) else max(prepare.size))
  out.mkdir(parents=True, exist_ok=True)
  _write_json(out / huggingface.CONFIG, config)
  _write_json(out / "preprocessor_config.json", _processor(prepare))
  if format == "hf":
    _write_huggingface(out, settings, params)
    if heads:
      save_file(naming.flatten(head_params), out / "heads.safetensors")
  else:
    arrays = naming.flatten(params) | ({} if "depths" in settings else naming.buffers(settings))
    if heads:
      arrays = {f"backbone.{key}": x for key, x in arrays.items()} | naming.flatten(head_params)
    if format == "official":
      _write_torch(out, arrays, heads)
    else:
      save_file(arrays, out / "model.safetensors")
  return sorted(out.iterdir())


def checked_out(out: str | os.PathLike) -> pathlib.Path:
  """The path of a folder that is new or empty and can be written, or a ValueError."""
  out = pathlib.Path(os.path.expanduser(out))
  if out.is_dir() and any(out.iterdir()):
    raise ValueError(f"{out} is not empty: choose another --out")
  if os.path.lexists(out) and not out.is_dir():
    raise ValueError(f"{out} is there already and no folder: choose another --out")
  above = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
  if not above.is_dir() or not os.access(above, os.W_OK):
    raise ValueError(f"{out} cannot be written: {above} is no folder, or not yours to change")
  return out


def require_torch():
  try:
    import torch  # noqa: F401
  except ModuleNotFoundError as error:
    raise ModuleNotFoundError("only PyTorch can write the official format: pip install torch, or "
                              "take --format safetensors, which has the same names") from error


def _read_heads(path, network) -> naming.Params:
  if not loading.is_native(path):
    raise ValueError(f"{path} has no heads: only our trainer's checkpoints do")
  from dinov3_jax.weights import native
  folder = native.locate(path)
  stored = native.stored_arrays(folder)[network]
  if not set(HEADS) <= set(stored):
    raise ValueError(f"the {network} of {path} has no heads: use teacher or student")
  abstract = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=jnp.zeros(()).sharding),
      {head: stored[head] for head in HEADS})
  return native.read_arrays(folder, {network: abstract})[network]


def _processor(prepare: Preprocess) -> dict[str, Any]:
  """The processor's settings: of `transformers`, and what `dinov3_jax.preprocess` reads."""
  height, width = np.broadcast_to(prepare.size, 2).tolist()
  return dict(image_processor_type="DINOv3ViTImageProcessorFast", do_rescale=True,
              rescale_factor=1 / 255, do_resize=True, size=dict(height=height, width=width),
              resample=2, do_normalize=True, image_mean=list(prepare.mean),
              image_std=list(prepare.std))


def _write_huggingface(out: pathlib.Path, settings: Mapping[str, Any], params: naming.Params):
  leaves = naming.by_path(jax.tree.map(np.asarray, params))
  entries = list(naming.entries(params, "huggingface", settings.get("mask_k_bias", False)))
  shards = list(_in_shards(entries))
  place, last = {}, len(shards)
  for i, shard in enumerate(shards, 1):
    file = "model.safetensors" if last == 1 else f"model-{i:05}-of-{last:05}.safetensors"
    arrays = {entry.name: entry.to_theirs(leaves[entry.path]) for entry in shard}
    if i == 1 and "depths" not in settings and not settings.get("storage_tokens", 0):
      arrays["embeddings.register_tokens"] = np.zeros((1, 0, settings["width"]), np.float32)
    save_file(arrays, out / file, {"format": "pt"})
    place |= dict.fromkeys(arrays, file)
  if last > 1:
    size = sum(x.nbytes for x in leaves.values())
    _write_json(out / files.INDEX, dict(metadata=dict(total_size=size), weight_map=place))


def _in_shards(entries: Iterable[naming.Entry]) -> Iterable[list[naming.Entry]]:
  shard, size = [], 0
  for entry in entries:
    more = 4 * int(np.prod(entry.theirs))
    if shard and size + more > SHARD_BYTES:
      yield shard
      shard, size = [], 0
    shard.append(entry)
    size += more
  yield shard


def _write_torch(out: pathlib.Path, arrays: Mapping[str, np.ndarray], heads: bool):
  import torch
  tensors = {name: torch.from_numpy(np.array(x)) for name, x in arrays.items()}
  if heads:
    torch.save({"teacher": tensors}, out / "teacher_checkpoint.pth")
  else:
    torch.save(tensors, out / "backbone.pth")


def _write_json(path: pathlib.Path, content: Mapping[str, Any]):
  path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
