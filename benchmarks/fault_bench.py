"""Runs of a tiny network in processes of their own, for `faults.py`."""

import dataclasses
import os
import pathlib
import random
import signal
import subprocess
import sys
import threading
import time

import numpy as np
from PIL import Image

ROOT = pathlib.Path(__file__).parents[1]
STEPS = 200
RECIPE = """
from configs import base

def get_config():
  config = base.get_config()
  config.update_from_flattened_dict({{
    "model.patch_size": 8, "model.width": 16, "model.depth": 2, "model.num_heads": 2,
    "model.mask_k_bias": True,
    "dino.prototypes": 32, "dino.hidden": 16, "dino.bottleneck": 8,
    "ibot.prototypes": 32, "ibot.hidden": 16, "ibot.bottleneck": 8, "koleo.group": 2,
    "crops.global_sizes": (16,), "crops.local_sizes": (8,), "crops.locals": 2,
    "data.source": {images!r}, "data.workers": 0,
    "train.steps": {steps}, "train.batch_size": 16, "train.dtype": "float32",
    "schedules.lr.warmup_steps": 2, "schedules.teacher_temp.warmup_steps": 2,
    "optim.freeze_last_layer_steps": 1, "log_every": 1,
    "checkpoint.every": 2, "checkpoint.keep": 3, "checkpoint.keep_every": 0,
    "evals.every": 50, "evals.knn_k": 3, "evals.image_size": 16, "evals.pictures": 2,
    "evals.picture_size": 16}})
  return config
"""


@dataclasses.dataclass
class Bench:
  """Where it all happens, and what undisturbed runs end with."""

  folder: pathlib.Path
  rng: random.Random

  def __post_init__(self):
    images = make_images(self.folder / "images", 60)
    self.recipe = self.folder / "recipe.py"
    self.recipe.write_text(RECIPE.format(images=str(images), steps=STEPS))
    self.expected: dict[str, np.ndarray] = {}

  def start(self, workdir: pathlib.Path, *settings: str) -> subprocess.Popen:
    return subprocess.Popen(
      [sys.executable, "-m", "dinov3_jax.main", f"--config={self.recipe}", f"--workdir={workdir}",
       *(f"--config.{setting}" for setting in settings)],
      cwd=ROOT, env=self.environment(), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

  def environment(self) -> dict[str, str]:
    cache = str(self.folder / "cache")
    return {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": cache,
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}

  def finish(self, workdir: pathlib.Path, *settings: str, seconds: float = 3000
             ) -> tuple[int, str, str]:
    """Runs the command to its end: its exit code, and what it prints."""
    process = self.start(workdir, *settings)
    out, err = process.communicate(timeout=seconds)
    return process.returncode, out, err

  def stop_at(self, workdir: pathlib.Path, step: int, *settings: str):
    """Trains until there is a checkpoint of `step` or later, and stops."""
    process = self.start(workdir, *settings)
    while process.poll() is None and max(checkpoints(workdir), default=0) < step:
      time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=100)

  def undisturbed(self, *settings: str) -> dict[str, np.ndarray]:
    """The last state of a run with these settings that was left in peace."""
    name = "-".join(settings) or "plain"
    if not self.expected.get(name):
      workdir = self.folder / f"calm-{len(self.expected)}"
      code, _, err = self.finish(workdir, *settings)
      assert code == 0, err
      self.expected[name] = stored(workdir)
    return self.expected[name]

  def ends_right(self, workdir: pathlib.Path, *settings: str) -> bool:
    """Whether a run, started again, ends as one that was left in peace."""
    code, _, _ = self.finish(workdir, *settings)
    return code == 0 and same(stored(workdir), self.undisturbed(*settings))

  def duration(self) -> float:
    """Seconds that the command takes, its programs compiled before."""
    self.undisturbed()
    began = time.monotonic()
    self.finish(self.folder / "timed")
    return time.monotonic() - began


def make_images(folder: pathlib.Path, count: int) -> pathlib.Path:
  rng = np.random.default_rng(0)
  for i in range(count):
    path = folder / "ab"[i % 2] / f"{i}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 256, (20, 24, 3), np.uint8)).save(path)
  return folder


def stored(workdir: pathlib.Path) -> dict[str, np.ndarray]:
  """Every array of a run's newest checkpoint, by its path."""
  import jax
  import orbax.checkpoint as ocp

  from dinov3_jax.weights import native
  folder, reader = native.latest(workdir) / "state", ocp.PyTreeCheckpointHandler()
  numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray),
                       reader.metadata(folder).tree)
  tree = ocp.Checkpointer(reader).restore(folder, ocp.args.PyTreeRestore(restore_args=numpy))
  leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
  return {jax.tree_util.keystr(path): x for path, x in leaves}


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
  return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def checkpoints(workdir: pathlib.Path) -> list[int]:
  folder = workdir / "checkpoints"
  return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit()) if (
    folder.is_dir()) else []


def wait_for_handler(process: subprocess.Popen):
  """Waits until a process takes SIGTERM into its own hands: its first import has begun."""
  bit = 1 << (signal.SIGTERM - 1)
  status = pathlib.Path(f"/proc/{process.pid}/status")
  while process.poll() is None:
    caught = next(line for line in status.read_text().splitlines() if line.startswith("SigCgt:"))
    if int(caught.split()[1], 16) & bit:
      return
    time.sleep(0.002)


class Peak:
  """The most memory that a process and its children hold together, looked at ten times a second."""

  def __init__(self, pid: int):
    self._pid, self.most, self._ended = pid, 0, threading.Event()
    self._thread = threading.Thread(target=self._watch, daemon=True)
    self._thread.start()

  def _watch(self):
    while not self._ended.wait(0.1):
      self.most = max(self.most, resident(self._pid))

  def close(self) -> int:
    self._ended.set()
    self._thread.join()
    return self.most


def resident(pid: int) -> int:
  """Bytes that a process and all below it hold, what they share counted in proportion."""
  total = 0
  try:
    for line in pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
      if line.startswith("Pss:"):
        total += int(line.split()[1]) * 1024
    children = pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    threads = pathlib.Path(f"/proc/{pid}/task").iterdir()
    children = {child for thread in threads for child in (thread / "children").read_text().split()}
  except OSError:
    return total
  return total + sum(resident(int(child)) for child in children)
