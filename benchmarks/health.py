"""What the health figures cost: those in every step, and those at every log line.

  python benchmarks/health.py                       # the quickstart's step
  python benchmarks/health.py --config=configs/vits16.py --batch=4

Steps with and without the figures take turns, for machines vary from hour to hour; the median of
the ratios within a turn counts, and that of two equal programs says how far to trust it. The
figures of a step are also timed alone, on arrays of its shapes. Images are noise, and so are the
parameters: neither changes what is computed.
"""

import argparse
import importlib.util
import tempfile
import time
from unittest import mock


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--config", default="configs/quickstart.py")
  parser.add_argument("--batch", type=int, default=0, help="images a step; 0: as in the config")
  parser.add_argument("--repeats", type=int, default=30)
  args = parser.parse_args()

  import jax
  import numpy as np

  from dinov3_jax.losses import usage
  from dinov3_jax.train import inputs, objective, sharding
  from dinov3_jax.train.health import Health
  from dinov3_jax.train.prepare import jit_step
  from dinov3_jax.train.state import init_state

  spec = importlib.util.spec_from_file_location("recipe", args.config)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  config = module.get_config()
  if args.batch:
    config.train.batch_size = config.koleo.group = args.batch
  config.health.reference_at = 0
  config.mesh.update(data=1, fsdp=1, tensor=1)
  mesh = sharding.make_mesh(config, jax.devices()[:1])
  rng = np.random.default_rng(0)
  side = max(config.crops.global_sizes) * 8 // 7
  source = [dict(image=rng.integers(0, 256, (side, side, 3)).astype(np.uint8), label=-1)
            for _ in range(64)]
  batch, _ = inputs.fetch(inputs.open_pipeline(config, source, mesh), mesh)
  abstract = sharding.abstract_state(mesh, lambda: init_state(config))

  def compiled():
    return jit_step(config, mesh, abstract).lower(abstract, batch).compile()

  steps = {"figures": compiled()}
  with mock.patch.multiple(objective, prototype_usage=lambda *_, **__: (0.0, 0.0),
                           cls_patch_cosine=lambda *_: 0.0):
    steps["plain"], steps["control"] = compiled(), compiled()
  dino, images = config.dino, config.train.batch_size
  noise = lambda *shape: rng.standard_normal(shape).astype(np.float32)
  patches = (config.crops.global_sizes[0] // config.model.patch_size) ** 2
  arrays = jax.device_put((
    noise(2 * images, dino.bottleneck), noise(dino.bottleneck, dino.prototypes),
    noise(2 * images, config.model.width), noise(2 * images, patches, config.model.width)))
  alone = jax.jit(lambda rows, kernel, cls, patches: (
    usage.prototype_usage(rows, kernel, 0.05, config.train.prototype_chunks),
    usage.cls_patch_cosine(cls, patches))).lower(*arrays).compile()
  state = jax.jit(lambda: init_state(config))()
  times = {name: [] for name in (*steps, "look", "alone")}
  order = list(steps)
  with tempfile.TemporaryDirectory() as folder:
    health = Health(config, folder, mesh, source * (-(-config.health.images // len(source))))
    health(0, state, {})
    for i in range(args.repeats + 2):
      order = order[1:] + order[:1]
      for name in order:
        began = time.perf_counter()
        state, _ = jax.block_until_ready(steps[name](state, batch))
        times[name].append(time.perf_counter() - began)
      began = time.perf_counter()
      jax.block_until_ready(alone(*arrays))
      times["alone"].append(time.perf_counter() - began)
      began = time.perf_counter()
      health((i + 1) * config.log_every, state, {})
      times["look"].append(time.perf_counter() - began)
  times = {name: np.array(values[2:]) for name, values in times.items()}
  ratio = lambda name: np.median(times[name] / times["plain"]) - 1
  print(f"a step {1e3 * np.median(times['plain']):.1f} ms; with figures {ratio('figures'):+.2%} (a "
        f"second program without: {ratio('control'):+.2%})")
  print(f"the figures of a step alone {1e3 * np.median(times['alone']):.2f} ms, "
        f"{np.median(times['alone'] / times['plain']):.2%}")
  share = np.median(times["look"] / times["plain"]) / config.log_every
  print(f"a look at {config.health.images} images {1e3 * np.median(times['look']):.1f} ms, of "
        f"{config.log_every} steps {share:.2%}")


if __name__ == "__main__":
  main()
