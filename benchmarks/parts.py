"""What it takes to hand batches from workers to the main process, whole and in parts.

  python benchmarks/parts.py [--batch-size 512] [--workers 2]

For each size of a part: seconds to the first batch, shared memory that parts may take while they
wait, and the CPU time of the main process for an image. Images are of one colour, so that nothing
is spent on decoding them.
"""

import argparse
import os
import time

import numpy as np

from dinov3_jax.data import pipeline as module
from dinov3_jax.data.crops import MultiCrop


class Plain:
  """One image, again and again."""

  labels = classes = None

  def __len__(self):
    return 10_000

  def __getitem__(self, index):
    return {"image": np.full((256, 256, 3), index % 256, np.uint8), "label": -1, "name": "plain"}


class Maker(module.PartMaker):
  """Makes parts of a size of one's own, in whatever process."""

  def __call__(self, place):
    module.PART = int(os.environ["PART"])
    return super().__call__(place)


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--batch-size", type=int, default=512)
  parser.add_argument("--workers", type=int, default=2)
  parser.add_argument("--batches", type=int, default=3)
  args = parser.parse_args()
  print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
  print("| images a part | s to the first batch | MB that may wait | us of CPU an image |")
  for part in (32, 128, args.batch_size):
    os.environ["PART"], module.PART = str(part), part
    made = module.make_pipeline(Plain(), [MultiCrop(color_strength=0.0)], [1.0], args.batch_size,
                                workers=args.workers)
    made._maker = Maker(**vars(made._maker))
    began = time.perf_counter()
    next(made)
    first = time.perf_counter() - began
    began = time.process_time()
    for _ in range(args.batches):
      next(made)
    spent = (time.process_time() - began) / args.batches / args.batch_size
    waiting = (4 * args.workers + 1) * made._maker.nbytes
    made.close()
    print(f"| {part} | {first:.1f} | {waiting / 1e6:.0f} | {1e6 * spent:.0f} |", flush=True)


if __name__ == "__main__":
  main()
