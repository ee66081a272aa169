"""Peak temporary memory of the DINO and iBOT losses against the number of prototypes.

`plain` holds all logits; `chunked` sees one chunk of the prototypes at a time. The losses and their
gradients are compiled, from the heads' bottlenecks on, and only with --seconds run. Defaults: one
device of the 7B recipe (16 images, of which the reference masks 1,274 patches).

  python benchmarks/memory.py --prototypes 16384 65536 262144 --chunk 8192
"""

import argparse
import time

import jax
import jax.numpy as jnp

from dinov3_jax.losses import (
  dino_loss,
  ibot_loss,
  prototype_cross_entropy,
  sinkhorn,
  sinkhorn_scales_from_bottleneck,
)

TEMPERATURE = 0.07


def plain(student, teacher, kernels, weights):
  """Student and teacher: bottlenecks of (crops [B, S, d], patches [M, d])."""
  def logits(rows, side, head):
    return rows @ kernels[side][head].astype(rows.dtype)

  crops, patches = (logits(rows, "student", i) for i, rows in enumerate(student))
  crop_targets, patch_targets = (logits(rows, "teacher", i) for i, rows in enumerate(teacher))
  images, teachers, prototypes = crop_targets.shape
  crop_targets = sinkhorn(crop_targets.reshape(-1, prototypes), TEMPERATURE)
  crop_targets = crop_targets.reshape(images, teachers, prototypes)
  patch_targets = sinkhorn(patch_targets, TEMPERATURE)
  return (dino_loss(crops[:, :2], crop_targets, ignore_diagonal=True)
          + dino_loss(crops[:, 2:], crop_targets)
          + ibot_loss(patches, patch_targets, weights, 2 * images))


def chunked(student, teacher, kernels, weights, chunks):
  def cross_entropy(head, student, teacher, weights):
    kernel = kernels["teacher"][head]
    u, v = sinkhorn_scales_from_bottleneck(
      teacher.reshape(-1, teacher.shape[-1]), kernel, TEMPERATURE, chunks=chunks)
    return prototype_cross_entropy(
      student, kernels["student"][head], teacher, kernel, u, v.reshape(teacher.shape[:2]), weights,
      TEMPERATURE, chunks=chunks)

  images = len(student[0])
  crops = cross_entropy(0, student[0], teacher[0], jnp.ones(images)) / images
  patches = cross_entropy(1, student[1][:, None], teacher[1][:, None], weights)
  return (crops[0, 1] + crops[1, 0]) / 2 + crops[2:].mean() + patches[0, 0] / (2 * images)


def measure(loss, shapes, run: bool) -> tuple[float, float]:
  """Temporary memory in MiB, and the best of three runs in seconds (or NaN)."""
  step = jax.jit(jax.value_and_grad(
    lambda student, kernel, teacher, teacher_kernel, weights: loss(
      student, teacher, {"student": kernel, "teacher": teacher_kernel}, weights), (0, 1)))
  compiled = step.lower(*shapes).compile()
  seconds = []
  if run:
    leaves, structure = jax.tree.flatten(shapes)
    keys = jax.random.split(jax.random.key(0), len(leaves))
    args = structure.unflatten([
      jax.random.normal(key, leaf.shape, leaf.dtype) / 16 for key, leaf in zip(keys, leaves)])
    for _ in range(4):
      start = time.perf_counter()
      jax.block_until_ready(compiled(*args))
      seconds.append(time.perf_counter() - start)
  temporary = compiled.memory_analysis().temp_size_in_bytes
  return temporary / 2**20, min(seconds[1:], default=float("nan"))


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
  parser.add_argument("--prototypes", type=int, nargs="+",
                      default=[16_384, 32_768, 65_536, 131_072, 262_144])
  parser.add_argument("--chunk", type=int, default=8192, help="prototypes in a chunk")
  parser.add_argument("--images", type=int, default=16, help="a device")
  parser.add_argument("--locals", type=int, default=8, help="local crops an image")
  parser.add_argument("--masked", type=int, default=1274, help="patches a device")
  parser.add_argument("--bottleneck", type=int, default=384)
  parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
  parser.add_argument("--seconds", action="store_true", help="run, too")
  options = parser.parse_args()

  def shape(*sizes, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(sizes, dtype)

  def bottlenecks(crops):
    return [shape(options.images, crops, options.bottleneck, dtype=options.dtype),
            shape(options.masked, options.bottleneck, dtype=options.dtype)]

  print("| prototypes | plain, MiB | chunked, MiB |" + " plain, s | chunked, s |" * options.seconds)
  print("|" + " ---: |" * (5 if options.seconds else 3))
  for prototypes in options.prototypes:
    kernels = [shape(options.bottleneck, prototypes)] * 2
    shapes = (bottlenecks(2 + options.locals), kernels, bottlenecks(2), kernels,
              shape(options.masked))
    chunks = max(1, prototypes // options.chunk)
    columns = [measure(plain, shapes, options.seconds),
               measure(lambda *args, n=chunks: chunked(*args, n), shapes, options.seconds)]
    cells = [f"{memory:,.0f}" for memory, _ in columns]
    cells += [f"{seconds:.2f}" for _, seconds in columns] if options.seconds else []
    print(f"| {prototypes:,} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
  main()
