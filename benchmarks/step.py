"""Speed and memory of the real training step, and where its time goes.

  python benchmarks/step.py             # ViT-S/16, 2 x 224 + 8 x 96, batch 4, float32
  python benchmarks/step.py --torch     # in alternation with the same work in PyTorch

The two run in processes of their own and take turns, step by step: machines vary from hour to hour,
so only ratios within one run count. The part of heads and losses is the whole step less the other
two, which are timed on their own.
"""

import argparse
import multiprocessing
import resource
import statistics
import time

STORAGE_TOKENS = 4


def parse_arguments():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--batch", type=int, default=4, help="images a step")
  parser.add_argument("--prototypes", type=int, default=65536, help="of each head")
  parser.add_argument("--chunks", type=int, default=16, help="parts of prototypes in the losses")
  parser.add_argument("--remat", default="dots", help="none, dots or full")
  parser.add_argument("--dtype", default="float32")
  parser.add_argument("--drop-path", type=float, default=0.0)
  parser.add_argument("--repeats", type=int, default=5)
  parser.add_argument("--torch", action="store_true", help="compare with PyTorch")
  return parser.parse_args()


def make_config(args):
  from configs import base
  config = base.get_config()
  config.model.update(width=384, depth=12, num_heads=6, drop_path=args.drop_path,
                      storage_tokens=STORAGE_TOKENS)
  config.dino.prototypes = config.ibot.prototypes = args.prototypes
  config.koleo.group = args.batch
  config.train.update(batch_size=args.batch, dtype=args.dtype, remat=args.remat,
                      prototype_chunks=args.chunks)
  return config


def make_batch(config, seed=0):
  """Random uint8 crops, and masks as the pipeline draws them."""
  import numpy as np

  from dinov3_jax.data.masks import shard_masks
  rng = np.random.default_rng(seed)
  images, crops = config.train.batch_size, config.crops
  draw = lambda n, size: rng.integers(0, 256, (images, n, size, size, 3), np.uint8)
  grid = crops.global_sizes[0] // config.model.patch_size
  masks, indices, weights = shard_masks(rng, images, grid, config.masks.probability,
                                        config.masks.ratio)
  return dict(global_crops=draw(2, crops.global_sizes[0]),
              local_crops=draw(crops.locals, crops.local_sizes[0]), masks=masks,
              mask_indices=indices[None], mask_weights=weights[None])


def make_jax_steps(args):
  return steps_of(make_config(args))


def steps_of(config):
  """Functions that run the whole step, the backbones alone, and the update alone."""
  import jax
  import jax.numpy as jnp
  import optax
  from flax import nnx

  from dinov3_jax.models.attention import choose
  from dinov3_jax.models.products import for_training
  from dinov3_jax.train.objective import normalise
  from dinov3_jax.train.schedules import make_schedules
  from dinov3_jax.train.state import abstract_modules, init_state, optimizer_of
  from dinov3_jax.train.step import ema, make_train_step
  batch = jax.device_put(make_batch(config))
  graphs, shapes = abstract_modules(config)
  platform, dtype = jax.default_backend(), jnp.dtype(config.train.dtype)
  graphs = for_training(graphs, shapes, platform, dtype)
  graphs = choose(graphs, shapes, config.train.attention, platform, dtype)
  optimizer, schedules = optimizer_of(config, shapes), make_schedules(config)
  born = jax.jit(lambda: init_state(config))
  live = {"state": born()}
  step = jax.jit(make_train_step(config), donate_argnums=0)

  def backbones(student, teacher, batch):
    crops = [normalise(batch[name], config.crops.mean, config.crops.std, dtype)
             for name in ("global_crops", "local_crops")]
    model = lambda p: nnx.merge(graphs["backbone"], jax.tree.map(lambda x: x.astype(dtype), p))
    masks = batch["masks"].reshape(2 * config.train.batch_size, -1)

    def loss(student):
      outputs = model(student).forward_crops(*crops, masks, key=jax.random.key(0),
                                             remat=config.train.remat)
      return sum(jnp.sum(jnp.square(x.astype(jnp.float32))) for x in jax.tree.leaves(outputs))

    return jax.grad(loss)(student), model(teacher).forward_crops(crops[0])[0]

  def update(state, grads):
    updates, opt_state = optimizer.update(grads, state.opt_state, state.student, step=state.step)
    student = optax.apply_updates(state.student, updates)
    teacher = ema(state.teacher, student, schedules["momentum"](state.step))
    return state.replace(student=student, teacher=teacher, opt_state=opt_state)

  def whole():
    live["state"], metrics = step(live["state"], batch)
    jax.block_until_ready((live["state"], metrics))

  backbones, update = jax.jit(backbones), jax.jit(update, donate_argnums=0)

  def backbones_alone():
    state = live["state"]
    jax.block_until_ready(backbones(state.student["backbone"], state.teacher["backbone"], batch))

  def update_alone():
    grads = live.setdefault("grads", jax.tree.map(jnp.ones_like, live["state"].student))
    live["state"] = jax.block_until_ready(update(live["state"], grads))

  return dict(step=whole, backbone=backbones_alone, update=update_alone)


def make_torch_steps(args):
  from torch_step import make_step
  config = make_config(args)
  return dict(step=make_step(config, make_batch(config)))


def worker(connection, make, args):
  """Runs the functions that its parent names, and answers with their seconds."""
  steps = make(args)
  for name in iter(connection.recv, None):
    start = time.perf_counter()
    steps[name]()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    connection.send((time.perf_counter() - start, peak))
  connection.close()


class Worker:
  """A process of its own, so that its peak memory is its own."""

  def __init__(self, make, args):
    context = multiprocessing.get_context("spawn")
    self._connection, other = context.Pipe()
    self._process = context.Process(target=worker, args=(other, make, args), daemon=True)
    self._process.start()

  def __call__(self, name):
    self._connection.send(name)
    seconds, self.peak = self._connection.recv()
    return seconds

  def close(self):
    self._connection.send(None)
    self._process.join()


def main():
  args = parse_arguments()
  workers = {"dinov3_jax": Worker(make_jax_steps, args)}
  if args.torch:
    workers["PyTorch"] = Worker(make_torch_steps, args)
  times = {name: [] for name in workers}
  for name, run in workers.items():
    print(f"{name}: first step, with compilation, {run('step'):.1f} s", flush=True)
  for _ in range(args.repeats):
    for name, run in workers.items():
      times[name].append(run("step"))
  for name, run in workers.items():
    seconds = statistics.median(times[name])
    print(f"{name}: {args.batch / seconds:.2f} images/s, {seconds:.2f} s a step "
          f"({min(times[name]):.2f} to {max(times[name]):.2f}), peak memory {run.peak:.2f} GiB")
  if args.torch:
    ratios = [b / a for a, b in zip(*times.values())]
    print(f"PyTorch takes {statistics.median(ratios):.2f} times as long "
          f"({min(ratios):.2f} to {max(ratios):.2f} over {args.repeats} pairs)")
    workers.pop("PyTorch").close()

  run = workers["dinov3_jax"]
  parts = {}
  names = ("step", "backbone", "update")
  for name in names:
    run(name)
  rounds = [{name: run(name) for name in names} for _ in range(args.repeats)]
  for name in names:
    parts[name] = statistics.median(r[name] for r in rounds)
  whole = parts.pop("step")
  parts["heads and losses"] = whole - sum(parts.values())
  for name, seconds in parts.items():
    print(f"  {name:<18}{seconds:6.2f} s {seconds / whole:6.0%}")
  run.close()


if __name__ == "__main__":
  main()
