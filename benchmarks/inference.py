"""Images a second of the backbones, beside `transformers` on the same machine and in the same run.

The contenders share their weights, which is checked, and take turns: a round runs each once, and a
ratio is the median over the rounds of their times in one and the same round. On a CPU the
seconds that all cores together were busy say more than the clock where other programs run, too.

  python benchmarks/inference.py                          # ViT-S/16 and ViT-B/16, 224, batch 8
  python benchmarks/inference.py --dtype bfloat16 --device gpu
  python benchmarks/inference.py --parts                  # where ours spends its time
"""

import argparse
import json
import os
import pathlib
import tempfile
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors.numpy import save_file

import dinov3_jax
from dinov3_jax.models.products import inference_dot
from dinov3_jax.models.variants import variant
from dinov3_jax.weights import huggingface, naming

Run = Callable[[], object]


def ours(model: nnx.Module, images: np.ndarray) -> Run:
  images = jnp.asarray(images)
  return lambda: jax.block_until_ready(model(images)["patches"])


def theirs(name: str, model: nnx.Module, images: np.ndarray, device: str, compiled: bool) -> Run:
  """`transformers`' forward with the same weights; `images` as for ours."""
  import torch
  from transformers import AutoModel
  settings = variant(name).settings
  params = nnx.to_pure_dict(nnx.state(model))
  leaves = naming.by_path(jax.tree.map(lambda x: np.asarray(x, np.float32), params))
  arrays = {entry.name: entry.to_theirs(leaves[entry.path])
            for entry in naming.entries(params, "huggingface", settings["mask_k_bias"])}
  with tempfile.TemporaryDirectory() as folder:
    save_file(arrays, f"{folder}/model.safetensors", {"format": "pt"})
    pathlib.Path(folder, "config.json").write_text(json.dumps(huggingface.config(settings)))
    network = AutoModel.from_pretrained(folder).eval()
  device = "cuda" if device == "gpu" else device
  dtype = getattr(torch, str(images.dtype))
  network = network.to(device, dtype)
  x = torch.from_numpy(np.float32(images)).permute(0, 3, 1, 2).contiguous().to(device, dtype)
  forward = torch.compile(network) if compiled else network

  def run():
    with torch.inference_mode():
      patches = forward(x).last_hidden_state[:, 1 + settings["storage_tokens"]:]
    if device == "cuda":
      torch.cuda.synchronize()
    return patches

  return run


def measure(runs: dict[str, Run], rounds: int) -> dict[str, np.ndarray]:
  """Clock and CPU seconds [rounds, 2] of each contender."""
  for run in runs.values():
    run()
    run()
  seconds = {name: [] for name in runs}
  for _ in range(rounds):
    for name, run in runs.items():
      clock, cpu = time.perf_counter(), time.process_time()
      run()
      seconds[name].append((time.perf_counter() - clock, time.process_time() - cpu))
  return {name: np.array(x) for name, x in seconds.items()}


def table(name: str, options: argparse.Namespace) -> str:
  model = dinov3_jax.load(name, dtype=options.dtype)
  shape = (options.batch, options.size, options.size, 3)
  images = np.random.default_rng(0).normal(size=shape).astype(jnp.dtype(options.dtype))
  runs = {"dinov3_jax": ours(model, images)}
  for label in options.beside:
    run = theirs(name, model, images, options.device, label == "compiled")
    try:
      found = run()
    except Exception as error:  # no C++ compiler, for instance
      print(f"transformers, {label}, does not run: {str(error).splitlines()[0]}")
      continue
    difference = np.abs(np.float32(found.float().cpu()) - np.float32(runs["dinov3_jax"]())).max()
    if difference > (0.2 if options.dtype == "bfloat16" else 1e-4):
      raise ValueError(f"transformers, {label}, differs by {difference:.1e}: nothing to compare")
    runs[f"transformers, {label}"] = run
  seconds = measure(runs, options.rounds)
  lines = []
  for label, x in seconds.items():
    clock, cpu = np.median(x, 0)
    ratio, of_cpu = np.median(x / seconds["dinov3_jax"], 0)
    lines.append(f"| {name} | {label} | {options.batch / clock:.1f} | {ratio:.2f} | "
                 f"{cpu / options.batch * 1e3:.0f} | {of_cpu:.2f} |")
  return "\n".join(lines)


def parts(name: str, options: argparse.Namespace) -> str:
  """CPU milliseconds a batch of each kind of layer, all of them together."""
  model = dinov3_jax.load(name, dtype=options.dtype)
  graph, params = nnx.split(model.blocks)
  block = nnx.merge(graph, jax.tree.map(lambda x: x[0], params))
  block.set_attributes(dot_general=inference_dot)
  grid = options.size // model.patch_size
  images = jnp.zeros((options.batch, options.size, options.size, 3), options.dtype)
  tokens, width = 1 + variant(name).settings["storage_tokens"] + grid**2, len(block.norm1.bias[...])
  x = jax.random.normal(jax.random.key(0), (options.batch, tokens, width), options.dtype)
  rope = model.rope.tables(grid, grid)
  calls = {
    "all": (1, lambda: jax.block_until_ready(model(images))),
    "patch embedding": (1, jit(model.patch_embed, images)),
    "attention": (model.depth, jit(lambda x: block.attn(x, rope), x)),
    "feed-forward": (model.depth, jit(block.mlp, x)),
    "norms": (2 * model.depth + 1, jit(block.norm1, x)),
    "residuals": (2 * model.depth, jit(lambda x: x + block.ls1(x), x)),
  }
  seconds = measure({key: run for key, (_, run) in calls.items()}, options.rounds)
  times = {key: calls[key][0] * np.median(x, 0)[1] * 1e3 for key, x in seconds.items()}
  return "\n".join(f"| {name} | {key} | {x:.0f} | {x / times['all']:.0%} |"
                   for key, x in times.items())


def jit(function: Callable, *args) -> Run:
  compiled = jax.jit(function)
  return lambda: jax.block_until_ready(compiled(*args))


def main():
  parser = argparse.ArgumentParser(description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--models", nargs="+", default=["vits16", "vitb16"])
  parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
  parser.add_argument("--device", choices=["cpu", "gpu", "tpu"], default="cpu")
  parser.add_argument("--batch", type=int, default=8)
  parser.add_argument("--size", type=int, default=224)
  parser.add_argument("--rounds", type=int, default=7)
  parser.add_argument("--beside", nargs="*", choices=["eager", "compiled"],
                      default=["eager", "compiled"], help="forms of transformers")
  parser.add_argument("--parts", action="store_true", help="ours alone, by kind of layer")
  options = parser.parse_args()
  jax.config.update("jax_platforms", dict(gpu="cuda").get(options.device, options.device))
  print(f"{options.dtype}, {options.size} pixels, batch {options.batch}, {options.device}, "
        f"{len(os.sched_getaffinity(0))} cores, jax {jax.__version__}\n")
  rows, head = table, "| model | | images/s | time, ours = 1 | CPU ms an image | CPU, ours = 1 |"
  if options.parts:
    rows, head = parts, "| model | part | CPU ms a batch | share |"
  print(head, "| --- | --- |" + " ---: |" * (head.count("|") - 3), sep="\n")
  for name in options.models:
    print(rows(name, options), flush=True)


if __name__ == "__main__":
  main()
