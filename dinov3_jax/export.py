r"""Writes a model in a format that others read.

  python -m dinov3_jax.export CHECKPOINT --format hf|official|safetensors --out DIR

CHECKPOINT is whatever `dinov3_jax.load` takes, above all a run's folder. The formats:
  hf           a folder for `transformers.AutoModel.from_pretrained`
  official     a .pth file with the reference's names, as its hub has them; takes PyTorch
  safetensors  the same arrays in a safetensors file

Everything is float32 and exact. As in the reference's own releases, RoPE turns in float32 there,
even if it was trained in bfloat16. Hugging Face has no place for the norm that local crops may have
of their own, which only training uses, nor for biases of keys that the model masks.
"""

if __name__ == "__main__":
  from dinov3_jax import signals
  signals.exit_at_once()

import argparse
import json
import os
import pathlib
import sys
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

from dinov3_jax.data.preprocess import preprocess
from dinov3_jax.main import fail
from dinov3_jax.weights import files, huggingface, loading, naming

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
    ValueError: the folder is not empty, the checkpoint has no heads, or the format cannot hold this
      model; else as `dinov3_jax.load`.
    ModuleNotFoundError: "official" without PyTorch.
  """
  out = pathlib.Path(out)
  if out.exists() and any(out.iterdir()):
    raise ValueError(f"{out} is not empty: choose another --out")
  if format == "official":
    _require_torch()
  path = loading.locate(name, checkpoint)
  with jax.default_device(jax.local_devices(backend="cpu")[0]):
    settings, params = loading.read(name, path, jnp.float32, None, network)
    head_params = _read_heads(path, network) if heads else {}
  if format == "official" and settings.get("stem", "patch") != "patch":
    raise ValueError("the reference has no convolutional stem: export as safetensors")
  config = huggingface.config(settings) if format == "hf" else {"dinov3_jax": settings}
  out.mkdir(parents=True, exist_ok=True)
  _write_json(out / huggingface.CONFIG, config)
  _write_json(out / "preprocessor_config.json", _preprocessor(path))
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


def _require_torch():
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


def _preprocessor(path) -> dict[str, Any]:
  """The processor's settings: of `transformers`, and what `dinov3_jax.preprocess` reads."""
  if loading.is_native(path):
    from dinov3_jax.weights import native
    crops = native.stored_settings(native.locate(path))["crops"]
    mean, std = crops["mean"], crops["std"]
  else:
    mean, std = preprocess(path).mean, preprocess(path).std
  return dict(image_processor_type="DINOv3ViTImageProcessorFast", do_rescale=True,
              rescale_factor=1 / 255, do_resize=True, size=dict(height=224, width=224), resample=2,
              do_normalize=True, image_mean=list(mean), image_std=list(std))


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


def main() -> int:
  parser = argparse.ArgumentParser(prog="python -m dinov3_jax.export", description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
  add = parser.add_argument
  add("checkpoint", metavar="CHECKPOINT", help="a run's folder, or any other weights")
  add("--format", choices=["hf", "official", "safetensors"], required=True)
  add("--out", metavar="DIR", required=True, help="a new folder")
  add("--network", choices=["teacher", "student"], default="teacher")
  add("--heads", action="store_true", help="write the heads of DINO and iBOT, too")
  add("--name", metavar="MODEL", help="which model it is, where the weights do not say so")
  args = parser.parse_args()
  try:
    written = export(args.checkpoint, args.format, args.out, name=args.name, network=args.network,
                     heads=args.heads)
  except (OSError, ValueError, ModuleNotFoundError) as error:
    return fail(error)
  for path in written:
    print(path)
  return 0


if __name__ == "__main__":
  sys.exit(main())
