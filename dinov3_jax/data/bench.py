r"""Images a second of this machine, part by part, and whether it keeps up with a training step.

  python -m dinov3_jax.data.bench SOURCE [--config FILE] [--step-seconds S]

SOURCE is whatever `config.data.source` takes; FILE is a recipe (configs/vits16.py), whose crops and
settings of `data` count. The parts are milliseconds of CPU an image, on one thread; what follows is
images a second of the whole stream, with --workers processes.
"""

import dataclasses
import logging
import os
import runpy
import sys
import time
from collections.abc import Sequence

import numpy as np

from dinov3_jax.data.crops import MultiCrop, random_window
from dinov3_jax.data.decode import DamagedImage, Decoder
from dinov3_jax.data.pipeline import Pipeline
from dinov3_jax.data.sources.base import Source
from dinov3_jax.data.worker import keep_freed_memory

PARTS = ("read", "decode", "windows", "resize", "colours")


def measure(source: Source, decoder: Decoder, crop: MultiCrop, indices: Sequence[int]
            ) -> dict[str, float]:
  """Milliseconds of CPU that each of `PARTS` takes for an image, the mean over some.

  "resize" is what the crops take without colours, less the drawing of windows, and "colours" the
  rest; both are 0 where colours cannot be left out of the crops.

  Args:
    source: of the images.
    decoder: that reads their bytes.
    crop: that cuts them.
    indices: of the images.

  Raises:
    ValueError: none of them can be read.
  """
  try:
    plain = dataclasses.replace(crop, colors="device")
  except ValueError:  # crops are cut out of what is distorted
    plain = None
  spent, images, clock = dict.fromkeys(PARTS, 0.0), 0, time.process_time
  for i in indices:
    try:
      began = clock()
      data = source.encoded(int(i))
      read = clock()
      image = decoder(data, "")
      decoded = clock()
    except DamagedImage:
      continue
    images += 1
    spent["read"] += read - began
    spent["decode"] += decoded - read
    rng, (height, width) = np.random.default_rng(int(i)), image.shape[:2]
    began = clock()
    for scale, count in ((crop.global_scale, 2), (crop.local_scale, crop.locals)):
      for _ in range(count):
        random_window(height, width, scale, rng)
    windows = clock() - began
    whole = _seconds(crop, image, int(i))
    bare = whole if plain is None else _seconds(plain, image, int(i))
    distorts = crop.colors == "host" and plain is not None
    spent["windows"] += windows
    spent["resize"] += bare - windows
    spent["colours"] += max(whole - bare, 0.0) if distorts else 0.0
  if not images:
    raise ValueError(f"none of {len(indices)} images can be read")
  return {part: 1e3 * seconds / images for part, seconds in spent.items()}


def _seconds(crop: MultiCrop, image: np.ndarray, seed: int) -> float:
  rng, began = np.random.default_rng(seed), time.process_time()
  crop(image, rng)
  return time.process_time() - began


def throughput(pipeline: Pipeline, batch_size: int, seconds: float) -> tuple[float, float]:
  """Seconds until the first batch, and images a second after that, over about so many seconds."""
  began = time.perf_counter()
  next(pipeline)
  first = time.perf_counter()
  batches = 0
  while batches < 2 or time.perf_counter() - first < seconds:
    next(pipeline)
    batches += 1
  speed = batches * batch_size / (time.perf_counter() - first)
  pipeline.close()
  return first - began, speed


def report(parts: dict[str, float], first: float, speed: float, batch_size: int,
           step_seconds: float | None) -> list[str]:
  """What is measured, line by line."""
  total = sum(parts.values())
  lines = [f"  {part:8} {ms:8.3f} ms {ms / total:5.0%}" for part, ms in parts.items()]
  lines.append(f"  {'together':8} {total:8.3f} ms of CPU an image: {1e3 / total:,.0f} images/s a "
               "core")
  lines.append(f"the stream: the first batch after {first:.1f} s, then {speed:,.0f} images/s")
  if step_seconds:
    needed = batch_size / step_seconds
    lines.append(f"a step of {batch_size:,} images in {step_seconds:g} s takes {needed:,.0f} "
                 "images/s: " + ("the machine keeps up" if speed >= needed else
                                 f"the machine makes {speed / needed:.0%} of that, and the devices "
                                 f"wait; about {needed * total / 1e3:,.0f} cores would do"))
  return lines


def main() -> int:
  # Not before the command line is known to be right: it takes seconds.
  from dinov3_jax import arguments, console
  from dinov3_jax.main import fail
  parser = arguments.Parser("data.bench", __doc__)
  add = parser.add_argument
  add("source", metavar="SOURCE")
  add("--config", metavar="FILE", help="a recipe; by default the settings of configs/base.py")
  add("--split", default="train", choices=["train", "val", "test", "all"])
  add("--images", type=int, default=200, metavar="N", help="that are looked at part by part")
  add("--workers", type=int, metavar="N", help="processes; by default one a core, at most 8")
  add("--batch-size", type=int, metavar="IMAGES", help="by default the recipe's, at most 256")
  add("--seconds", type=float, default=10.0, help="that the stream is measured for")
  add("--step-seconds", type=float, metavar="S", help="of a training step of such a batch")
  args = parser.parse_args()
  console.set_up(logging.WARNING)
  keep_freed_memory()  # as workers do
  from configs import base
  from dinov3_jax.data.pipeline import make_pipeline
  from dinov3_jax.train.images import make_decoder, open_images
  from dinov3_jax.train.inputs import make_multi_crops
  try:
    config = runpy.run_path(args.config)["get_config"]() if args.config else base.get_config()
    config.data.source = args.source
    batch_size = args.batch_size or min(config.train.batch_size, 256)
    workers = min(os.cpu_count() or 1, 8) if args.workers is None else args.workers
    source, crops = open_images(config, args.split), make_multi_crops(config)
    count = min(args.images, len(source))
    chosen = np.random.default_rng(0).choice(len(source), count, replace=False)
    parts = measure(source, make_decoder(config, args.split), crops[0], chosen)
    pipeline = make_pipeline(source, crops, config.crops.size_weights, batch_size,
                             seed=config.seed, workers=workers,
                             max_damaged=config.data.max_damaged)
    first, speed = throughput(pipeline, batch_size, args.seconds)
  except (OSError, ValueError, KeyError) as error:
    return fail(error)
  print(f"{count:,} of {len(source):,} images of {args.source}; crops "
        f"{'x'.join(map(str, config.crops.global_sizes))} and "
        f"{'x'.join(map(str, config.crops.local_sizes))}, batches of {batch_size}, {workers} "
        "workers")
  print("\n".join(report(parts, first, speed, batch_size, args.step_seconds)))
  return 0


if __name__ == "__main__":
  sys.exit(main())
