"""The training step on one GPU: speed, utilisation, memory, and what its settings are worth.

  python benchmarks/gpu.py            # nine minutes; prints the tables of benchmarks/gpu.md
  python benchmarks/gpu.py --tiny     # small enough for a CPU, to see that it works

Trains ViT-L, B and S with the crops of configs/vitl16_in1k.py in bfloat16, on random images that
stay on the device. The largest batch that fits, of powers of two, is found first, ViT-L's before
all else. Then come cuDNN's attention beside XLA's and the time of each part, the other models and
smaller batches, and the options of `train/compiler.py`, each turned off in turn. What is compared
takes turns, step by step. Every figure is written to --out as soon as it is there; when the time is
up, what is there is printed.
"""

import argparse
import json
import multiprocessing
import signal
import statistics
import subprocess
import time
from pathlib import Path

MODELS = {
  "ViT-L": dict(width=1024, depth=24, num_heads=16),
  "ViT-B": dict(width=768, depth=12, num_heads=12),
  "ViT-S": dict(width=384, depth=12, num_heads=6),
}
TINY = {"tiny": dict(width=32, depth=2, num_heads=2, patch_size=8)}

# Dense bfloat16 operations a second by `device_kind`; where a data sheet has only the figure with
# sparsity, half of that. Data sheets: nvidia.com/en-us/data-center/h100, /h200, /a100 and /l4.
PEAKS = {
  "NVIDIA H100 80GB HBM3": 989e12,
  "NVIDIA H100 PCIe": 756e12,
  "NVIDIA H200": 989e12,
  "NVIDIA A100-SXM4-40GB": 312e12,
  "NVIDIA A100-SXM4-80GB": 312e12,
  "NVIDIA A100-PCIE-40GB": 312e12,
  "NVIDIA A100 80GB PCIe": 312e12,
  "NVIDIA L4": 121e12,
}


def parse_arguments():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--budget", type=float, default=540, help="seconds, compilation included")
  parser.add_argument("--out", type=Path, default=Path("gpu.jsonl"), help="a file of JSON lines")
  parser.add_argument("--rounds", type=int, default=5, help="timed steps of each program")
  parser.add_argument("--tiny", action="store_true", help="a network that a CPU trains in no time")
  return parser.parse_args()


def make_config(model: str, batch: int, tiny: bool = False, attention: str = "auto"):
  from configs import vitl16_in1k
  config = vitl16_in1k.get_config()
  config.model.update((TINY if tiny else MODELS)[model])
  config.train.update(batch_size=batch, dtype="bfloat16", attention=attention)
  config.koleo.group = min(config.koleo.group, batch)
  if tiny:
    for head in (config.dino, config.ibot):
      head.update(prototypes=64, hidden=32, bottleneck=16)
    config.crops.update(global_sizes=(32,), local_sizes=(16,), locals=2)
  return config


def first_guess(model, locals_: int, memory: float) -> int:
  """The power of two at which a search for the largest batch begins.

  Args:
    model: width and depth.
    locals_: local crops of an image.
    memory: bytes.
  """
  tokens = 2 * 197 + locals_ * 37
  # Of a block, "dots" keeps some ten arrays as wide as the tokens, in bfloat16.
  batch = memory / (tokens * model["depth"] * model["width"] * 20)
  return 2 ** max(int(batch).bit_length() - 1, 0)


def largest(attempt, guess: int, limit: float, most: int) -> int | None:
  """The largest batch, of `guess` times a power of two up to `most`, that fits; None: none does.

  Args:
    attempt: takes a batch, and returns the bytes that the step holds for it and the bytes that do
      not grow with it, or None where memory does not suffice.
    limit: bytes that there are; a batch that would clearly take more is not attempted.
  """
  batch, best = guess, None
  while 1 <= batch <= most:
    taken = attempt(batch)
    if taken is None:
      most = batch - 1
      batch = batch // 2 if best is None else batch
      continue
    best, (total, fixed) = batch, taken
    if 2 * total - fixed > limit:
      break
    batch *= 2
  return best


def figures(seconds: float, batch: int, flops, peak: float | None) -> dict:
  """What a step's time means; `flops` has `full` and `executed` operations of a step."""
  result = dict(seconds=seconds, images_per_second=batch / seconds,
                tflops_per_second=flops.executed / seconds / 1e12)
  if peak:
    result |= dict(model_utilisation=flops.full / seconds / peak,
                   executed_utilisation=flops.executed / seconds / peak)
  return result


class Bench:
  """All measurements, in the process that has the GPU; `send` takes each as a dict."""

  def __init__(self, args, send):
    import jax

    from dinov3_jax.train import sharding
    self.args, self.send = args, send
    self.models = TINY if args.tiny else MODELS
    self.device = jax.local_devices()[0]
    self.mesh = sharding.make_mesh(make_config(next(iter(self.models)), 1, args.tiny),
                                   [self.device])
    self.limit = (self.device.memory_stats() or {}).get("bytes_limit", 8 * 2**30)
    self.peak = PEAKS.get(self.device.device_kind)
    self.found = {}  # by model: the largest batch, its program, and the median of its time

  def config(self, model, batch, attention="auto"):
    return make_config(model, batch, self.args.tiny, attention)

  def lower(self, config):
    """The step as training lowers it, and a function that makes what it takes."""
    import functools

    import jax
    from step import make_batch

    from dinov3_jax.train import sharding
    from dinov3_jax.train.prepare import jit_step
    from dinov3_jax.train.state import init_state
    make = functools.partial(init_state, config)
    abstract = sharding.abstract_state(self.mesh, make)
    layout = jax.tree.map(lambda x: x.sharding, abstract)
    place = sharding.batch_sharding(self.mesh)
    batch = make_batch(config)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), batch)
    lowered = jit_step(config, self.mesh, abstract).lower(abstract, shapes)
    return lowered, lambda: (jax.jit(make, out_shardings=layout)(), jax.device_put(batch, place))

  def run(self, programs: dict, make) -> dict[str, list[float]]:
    """Seconds of each program's steps, which take turns; the first round does not count."""
    import jax
    state, batch = make()
    times = {name: [] for name in programs}
    for i in range(self.args.rounds + 1):
      for name, program in programs.items():
        start = time.perf_counter()
        state, metrics = program(state, batch)
        jax.block_until_ready((state, metrics))
        if i:
          times[name].append(time.perf_counter() - start)
    return times

  def step(self, model, batch):
    """Measures the step; returns the bytes that it takes in all and without the batch's, or None
    where memory does not suffice."""
    from dinov3_jax.costs.flops import step_flops
    config = self.config(model, batch)
    start = time.perf_counter()
    try:
      lowered, make = self.lower(config)
      program = lowered.compile()
      compiled = time.perf_counter() - start
      seconds = statistics.median(self.run({"": program}, make)[""])
    except Exception as error:
      self.refuse_unless_memory(error)
      self.send(dict(kind="full", model=model, batch=batch))
      return None
    taken = program.memory_analysis()
    memory = (taken.argument_size_in_bytes + taken.temp_size_in_bytes
              + taken.output_size_in_bytes - taken.alias_size_in_bytes)
    peak = (self.device.memory_stats() or {}).get("peak_bytes_in_use")
    self.send(dict(kind="step", model=model, batch=batch, compile_seconds=compiled, memory=memory,
                   peak_bytes_in_use=peak,
                   **figures(seconds, batch, step_flops(config, 1), self.peak)))
    if batch >= self.found.get(model, (0,))[0]:
      self.found[model] = batch, program, seconds
    return memory, taken.argument_size_in_bytes

  @staticmethod
  def refuse_unless_memory(error):
    from dinov3_jax.train import compiler
    if not compiler.is_too_large(error):
      raise error

  def search(self, model):
    """Finds the largest batch of a model, and measures it and all others on the way."""
    sizes = self.models[model]
    guess = 2 if self.args.tiny else first_guess(sizes, 8, self.limit)
    return largest(lambda batch: self.step(model, batch), guess, self.limit,
                   2 if self.args.tiny else 2**14)

  def compare(self, model, kind, name, make_program):
    """Measures another program beside the one that was found, in turns."""
    batch, control, _ = self.found[model]
    program = make_program(batch)
    _, make = self.lower(self.config(model, batch))
    times = self.run(dict(control=control, other=program), make)
    ratios = [b / a for a, b in zip(times["control"], times["other"])]
    self.send(dict(kind=kind, model=model, batch=batch, name=name,
                   control_seconds=statistics.median(times["control"]),
                   seconds=statistics.median(times["other"]), ratio=statistics.median(ratios),
                   least_ratio=min(ratios), greatest_ratio=max(ratios)))

  def attention(self, model):
    """cuDNN's attention beside XLA's, which "auto" takes on a GPU."""
    self.compare(model, "attention", "cudnn", lambda batch: self.lower(
      self.config(model, batch, "cudnn"))[0].compile())

  def parts(self, model):
    """Times of the backbones, of the update, and of what is left of the step."""
    from step import steps_of
    batch, _, whole = self.found[model]
    steps = steps_of(self.config(model, batch))
    parts = {}
    for name in ("backbone", "update"):
      steps[name]()
      times = []
      for _ in range(self.args.rounds):
        start = time.perf_counter()
        steps[name]()
        times.append(time.perf_counter() - start)
      parts[name] = statistics.median(times)
    parts["heads and losses"] = whole - sum(parts.values())
    for name, seconds in parts.items():
      self.send(dict(kind="part", model=model, batch=batch, name=name, seconds=seconds,
                     share=seconds / whole))

  def option(self, model, name):
    """The step with one of the compiler's options turned off, beside all of them."""
    self.compare(model, "option", name, lambda batch: self.lower(
      self.config(model, batch))[0].compile(compiler_options={name: False}))

  def all(self):
    """Everything, the most important first. What fails is told, and the rest goes on."""
    from dinov3_jax.train import compiler
    first, *others = self.models
    self.attempt("the first model", self.search, first)
    if first in self.found:
      self.attempt("cuDNN's attention", self.attention, first)
      self.attempt("the parts", self.parts, first)
    for model in others:
      self.attempt(model, self.search, model)
    for model, (batch, *_) in dict(self.found).items():
      for smaller in (batch // 2, batch // 4):
        if smaller and not self.args.tiny:
          self.attempt(f"{model} at {smaller}", self.step, model, smaller)
    options = list(compiler.OPTIONS["gpu"])[:1 if self.args.tiny else None]
    for name in options if first in self.found else ():
      self.attempt(name, self.option, first, name)

  def attempt(self, what, measure, *args):
    import jax

    from dinov3_jax.train import compiler
    try:
      measure(*args)
    except (ValueError, jax.errors.JaxRuntimeError) as error:
      self.send(dict(kind="note", text=f"{what}: {compiler.reason(error)}"))


def machine() -> dict:
  """The card, its driver, and the versions of what runs on it."""
  import jax
  import jaxlib
  device = jax.local_devices()[0]
  command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
  try:
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    driver = done.stdout.split("\n")[0].strip()
  except (OSError, subprocess.SubprocessError):
    driver = "none"
  return dict(kind="machine", card=device.device_kind, driver=driver, jax=jax.__version__,
              jaxlib=jaxlib.__version__,
              platform=" ".join(device.client.platform_version.split()))


def worker(connection, args):
  """Measures, and sends what it finds."""
  import os

  # A training run may take nearly all there is; it is for JAX to know before it starts.
  os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.92")
  from dinov3_jax.train import compiler
  compiler.keep_programs()
  connection.send(machine())
  Bench(args, connection.send).all()
  connection.close()


def collect(connection, seconds: float, keep) -> bool:
  """Calls `keep` with whatever a worker sends; whether that ended before the seconds were over."""
  deadline = time.monotonic() + seconds
  while (left := deadline - time.monotonic()) > 0 and connection.poll(left):
    try:
      record = connection.recv()
    except EOFError:
      return True
    keep(record)
  return False


def table(header: list[str], rows: list[list[str]]) -> str:
  """A table in Markdown, its first column left and the others right; nothing without rows."""
  if not rows:
    return ""
  lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
  return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def report(records: list[dict]) -> str:
  """The tables of benchmarks/gpu.md."""
  of = lambda kind: [record for record in records if record["kind"] == kind]
  share = lambda record, key: f"{record[key]:.1%}" if key in record else ""
  steps = sorted(of("step"), key=lambda r: (list(MODELS | TINY).index(r["model"]), r["batch"]))
  compared = lambda kind, told: table(
    [told, "model", "images a step", "s a step", "s of control", "time, control = 1", "range"],
    [[r["name"], r["model"], str(r["batch"]), f"{r['seconds']:.4f}", f"{r['control_seconds']:.4f}",
      f"{r['ratio']:.3f}", f"{r['least_ratio']:.3f} to {r['greatest_ratio']:.3f}"]
     for r in of(kind)])
  parts = [
    *(f"{r['card']}, driver {r['driver']}, JAX {r['jax']}, jaxlib {r['jaxlib']}, {r['platform']}.\n"
      for r in of("machine")),
    table(["model", "images a step", "s a step", "images/s", "TFLOP/s executed",
           "model FLOP utilisation", "executed FLOP utilisation", "memory, GiB"],
          [[r["model"], str(r["batch"]), f"{r['seconds']:.4f}", f"{r['images_per_second']:.1f}",
            f"{r['tflops_per_second']:.3g}", share(r, "model_utilisation"),
            share(r, "executed_utilisation"), f"{r['memory'] / 2**30:.2f}"] for r in steps]),
    "".join(f"{r['model']}: {r['batch']} images a step do not fit.\n" for r in of("full")),
    table(["part", "model", "images a step", "s", "of the step"],
          [[r["name"], r["model"], str(r["batch"]), f"{r['seconds']:.4f}", f"{r['share']:.0%}"]
           for r in of("part")]),
    compared("attention", "attention (control: XLA's)"),
    compared("option", "option turned off (control: all on)"),
    "".join(f"- {r['text']}\n" for r in of("note"))]
  return "\n".join(filter(None, parts))


def main():
  args = parse_arguments()
  context = multiprocessing.get_context("spawn")
  connection, other = context.Pipe(duplex=False)
  process = context.Process(target=worker, args=(other, args), daemon=True)
  process.start()
  other.close()  # or its end would not be noticed
  records = []
  with args.out.open("w") as out:
    def keep(record):
      records.append(record)
      print(json.dumps(record), file=out, flush=True)

    ended = collect(connection, args.budget, keep)
    if not ended:
      keep(dict(kind="note", text=f"stopped after {args.budget:g} s, before all was measured"))
    process.join(10 if ended else 0)
    process.kill()  # at its end it would tell where it was
    process.join()
    if process.exitcode not in (0, -signal.SIGKILL):
      keep(dict(kind="note", text=f"what measures has failed, with code {process.exitcode}"))
  print(report(records))


if __name__ == "__main__":
  main()
