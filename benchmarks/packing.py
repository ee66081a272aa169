"""Global and local crops through a block: side by side, joined, or packed into one sequence.

  python benchmarks/packing.py --width 384 --heads 6 --images 4

- side by side: each kind of crop goes through the block as a batch of its own, as in training.
- joined: the tokens of both kinds are one matrix for norms, projections and the feed-forward
  network, and part for attention.
- packed: the crops of an image are one sequence, and attention sees a block-diagonal mask.

All three compute the same. Forward and backward, on this machine's default device, alternating; and
the operations that XLA counts.
"""

import argparse
import functools
import statistics
import time
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dinov3_jax.models import layers
from dinov3_jax.models.rope import Rope, rotate

PREFIX = 5  # CLS and four storage tokens


def side_by_side(block, crops, ropes):
  return [block(x, rope) for x, rope in zip(crops, ropes)]


def joined(block, crops, ropes):
  shapes = [x.shape for x in crops]
  join = lambda crops: jnp.concatenate([x.reshape(1, -1, x.shape[-1]) for x in crops], axis=1)
  ends = np.cumsum([b * t for b, t, _ in shapes])[:-1]
  part = lambda x: [y.reshape(*shape[:2], *y.shape[2:])
                    for y, shape in zip(jnp.split(x, ends, axis=1), shapes)]
  attn, x = block.attn, join(crops)
  qkv = attn.qkv.dot_general(block.norm1(x), attn.qkv.kernel[...], (((2,), (0,)), ((), ())))
  qkv += attn.qkv.bias[...]
  attended = []
  for y, rope in zip(part(qkv), ropes):
    q, k, v = jnp.moveaxis(y.reshape(*y.shape[:3], attn.num_heads, -1), 2, 0)
    y = layers.attention(rotate(q, *rope), rotate(k, *rope), v)
    attended.append(y.reshape(*y.shape[:2], -1))
  x += block.ls1(attn.proj(join(attended)))
  return part(x + block.ls2(block.mlp(block.norm2(x))))


def packed(block, crops, ropes):
  images = len(crops[0]) // 2
  counts = [len(x) // images for x in crops]  # crops of a kind in each image
  lengths = np.repeat([x.shape[1] for x in crops], counts)
  crop = np.repeat(np.arange(len(lengths)), lengths)
  mask = crop[:, None] == crop

  def table(tables, fill):  # none for the prefix, for every crop
    full = [jnp.pad(t, ((PREFIX, 0), (0, 0)), constant_values=fill) for t in tables]
    return jnp.concatenate([t for t, n in zip(full, counts) for _ in range(n)])

  sin, cos = (table(tables, fill) for tables, fill in zip(zip(*ropes), (0, 1)))
  attention = functools.partial(jax.nn.dot_product_attention, mask=mask[None, None])
  x = jnp.concatenate([x.reshape(images, -1, x.shape[-1]) for x in crops], axis=1)
  with mock.patch.object(layers, "attention", attention):
    x = block(x, (sin, cos))
  parts = jnp.split(x, [counts[0] * crops[0].shape[1]], axis=1)
  return [y.reshape(x.shape) for y, x in zip(parts, crops)]


def main():
  parser = argparse.ArgumentParser(description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
  for name, default in dict(width=384, heads=6, images=4, locals=8, global_size=224, local_size=96,
                            repeats=7).items():
    parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default)
  args = parser.parse_args()
  block = layers.Block(width=args.width, num_heads=args.heads, ffn="mlp", ffn_ratio=4.0,
                       ffn_align=8, qkv_bias=True, proj_bias=True, ffn_bias=True, mask_k_bias=False,
                       norm="layernorm", norm_eps=1e-6, layerscale=1.0, rngs=nnx.Rngs(0))
  sides = [args.global_size // 16, args.local_size // 16]
  ropes = [Rope(args.width // args.heads).tables(side, side) for side in sides]
  crops = [jax.random.normal(jax.random.key(i), (n * args.images, PREFIX + side**2, args.width))
           for i, (n, side) in enumerate(zip((2, args.locals), sides))]
  graph, params = nnx.split(block)

  def gradient(f):
    loss = lambda params, crops: sum(jnp.vdot(y, jnp.cos(y))
                                     for y in f(nnx.merge(graph, params), crops, ropes))
    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).lower(params, crops).compile()

  programs = {f.__name__: gradient(f) for f in (side_by_side, joined, packed)}
  values = [float(program(params, crops)[0]) for program in programs.values()]
  np.testing.assert_allclose(values, values[0], rtol=1e-4)
  seconds = {name: [] for name in programs}
  for _ in range(args.repeats):
    for name, program in programs.items():
      began = time.perf_counter()
      jax.block_until_ready(program(params, crops))
      seconds[name].append(time.perf_counter() - began)
  first = seconds["side_by_side"]
  print(f"{jax.devices()[0].device_kind}, width {args.width}, {args.images} images\n\n"
        "| | ms | against side by side | GFLOP |\n|---|---:|---:|---:|")
  for name, program in programs.items():
    ratio = statistics.median(a / b for a, b in zip(seconds[name], first))
    print(f"| {name.replace('_', ' ')} | {1e3 * statistics.median(seconds[name]):.0f} "
          f"| {ratio:.2f} | {program.cost_analysis()['flops'] / 1e9:.1f} |")


if __name__ == "__main__":
  main()
