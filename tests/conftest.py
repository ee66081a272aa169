"""What all tests share: fake devices, a compiler in a hurry, recorded figures, compiled steps."""

import functools
import importlib.metadata
import importlib.util
import json
import logging
import os
import pathlib
import signal
import warnings

# Before jax is imported. A test's program runs for milliseconds but takes LLVM half a minute to
# optimise, so here it does not try: the same HLO compiles in a tenth of the time. What stands in
# the environment already comes last, and wins.
# XLA ends the process over a flag that it does not know; since jaxlib 0.11 there is one fewer.
os.environ["XLA_FLAGS"] = " ".join([
    "--xla_force_host_platform_device_count=8", "--xla_backend_optimization_level=0",
    *["--xla_cpu_use_fusion_emitters=false"] * (
        tuple(map(int, importlib.metadata.version("jaxlib").split(".")[:2])) < (0, 11)),
    os.environ.get("XLA_FLAGS", "")])
os.environ["JAX_PLATFORMS"] = os.environ.get("JAX_PLATFORMS", "cpu")
os.environ["JAX_COMPILATION_CACHE_DIR"] = os.environ.get(
    "JAX_COMPILATION_CACHE_DIR", str(pathlib.Path(__file__).parents[1] / ".pytest_cache" / "jax"))
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from PIL import Image

from configs import base
from dinov3_jax.models.variants import VARIANTS
from dinov3_jax.train import checkpoint, official
from dinov3_jax.train.state import TrainState
from dinov3_jax.train.step import make_train_step

# Ctrl-C is ignored in a shell's background job, and a closed terminal under `nohup`; and so they
# would be in all that tests start.
for number, handler in ((signal.SIGINT, signal.default_int_handler),
                        (signal.SIGHUP, signal.SIG_DFL)):
  if signal.getsignal(number) == signal.SIG_IGN:
    signal.signal(number, handler)

pytest_plugins = ["tests.quick", "tests.distilled", "tests.aligned"]

TESTS = pathlib.Path(__file__).parent
ORDER = list(VARIANTS)
RECIPE = """
from configs import base

def get_config():
  config = base.get_config()
  config.update_from_flattened_dict({{
    "model.patch_size": 8, "model.width": 16, "model.depth": 2, "model.num_heads": 2,
    "model.mask_k_bias": True,  # or AdamW makes steps of its gradients' rounding
    "dino.prototypes": 32, "dino.hidden": 16, "dino.bottleneck": 8,
    "ibot.prototypes": 32, "ibot.hidden": 16, "ibot.bottleneck": 8, "koleo.group": 2,
    "crops.global_sizes": (16,), "crops.local_sizes": (8,), "crops.locals": 2,
    "data.source": {images!r}, "data.workers": 0,
    "train.steps": 8, "train.batch_size": 16, "train.dtype": "float32",
    "schedules.lr.warmup_steps": 2, "schedules.teacher_temp.warmup_steps": 2,
    "optim.freeze_last_layer_steps": 1, "log_every": 1,
    "health.images": 8, "health.reference_at": 2,
    "checkpoint.every": 2, "checkpoint.keep": 2, "checkpoint.keep_every": 0,
    "evals.every": 4, "evals.knn_k": 3, "evals.image_size": 16, "evals.pictures": 2,
    "evals.picture_size": 16}})
  return config
"""


@pytest.fixture(autouse=True)
def logging_as_it_is(monkeypatch):
  """Training leaves the log to pytest, and commands set it up for their own test alone."""
  monkeypatch.setattr("dinov3_jax.console.set_up_unless_done", lambda: None)
  loggers = [logging.getLogger(), logging.getLogger("dinov3_jax")]
  former = [(log.level, log.handlers[:], log.propagate) for log in loggers]
  yield
  for log, (level, handlers, propagate) in zip(loggers, former):
    log.setLevel(level)
    # Those of pytest come and go by themselves.
    log.handlers = [x for x in log.handlers if x in handlers] + [
      x for x in handlers if x not in log.handlers and "pytest" not in type(x).__module__]
    log.propagate = propagate


@pytest.fixture(autouse=True)
def variants_in_their_order():
  """A test that takes variants out of the table leaves them at its end."""
  if list(VARIANTS) != ORDER and sorted(VARIANTS) == sorted(ORDER):
    rows = {name: VARIANTS[name] for name in ORDER}
    VARIANTS.clear()
    VARIANTS.update(rows)


@pytest.fixture(scope="session")
def golden():
  """`golden(name)`: the arrays of golden/NAME.npz, a dict."""

  @functools.cache
  def load(name):
    with np.load(TESTS / "golden" / f"{name}.npz") as arrays:
      return dict(arrays)

  return load


@pytest.fixture(scope="session")
def recipe():
  """The module that makes the trajectories' parameters and batches."""
  spec = importlib.util.spec_from_file_location("recipe", TESTS / "golden" / "recipe.py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


class Trajectory:
  """Training steps recorded from the reference, and what it takes to repeat them.

  Attributes:
    record: the file.
    config: its settings as ours.
  """

  def __init__(self, name: str, recipe):
    self.record = json.loads((TESTS / "golden" / f"trajectory_{name}.json").read_text())
    self._recipe = recipe
    with warnings.catch_warnings():
      warnings.filterwarnings("ignore", "settings without effect")
      self.config = official.config(self.record["cfg"], width=64, depth=3, num_heads=2)

  @functools.cached_property
  def arrays(self) -> dict[str, np.ndarray]:
    """The parameters before the first step, by official name."""
    arrays = {}
    for name, shape in self.record["shapes"].items():
      name = name.removeprefix("student.")
      gram = bool(self.record["GT"]) and name.startswith("backbone")
      for network in ["student", "teacher", "gram"][:2 + gram]:
        key = f"{network}.{name}"
        arrays[key] = self._recipe.parameter(key, shape, self.record["salt"])
    return arrays

  def state(self) -> TrainState:
    """A new copy of the state before the first step."""
    return jax.tree.map(jnp.copy, official.train_state(self.config, self.arrays))

  def collated(self, step: int, **changes) -> dict[str, np.ndarray]:
    """The batch of a step in the reference's layout; `changes` are arguments of the recipe."""
    r = self.record
    arguments = dict(seed=r["batch_seed"], images=r["B"], global_size=r["G"], local_size=r["Lc"],
                     locals_per_image=r["nl"], gram_size=r["GT"])
    return self._recipe.batch(step, **arguments | changes)

  def batch(self, step: int) -> dict[str, np.ndarray]:
    """The batch of a step."""
    return official.batch(self.collated(step))

  def balanced_batch(self, step: int, shards: int = 1, **changes) -> dict[str, np.ndarray]:
    """A batch that divides into shards: twelve patches of one crop of every image are masked."""
    arrays = self.collated(step, **changes)
    rng = np.random.default_rng(step)
    images, patches = len(arrays["masks"]) // 2, arrays["masks"].shape[1]
    masks = np.zeros((2, images, patches), bool)
    for i, crop in enumerate(rng.integers(2, size=images)):
      masks[crop, i, rng.choice(patches, 12, replace=False)] = True
    return official.batch(arrays | dict(masks=masks.reshape(-1, patches)), shards)

  @functools.cached_property
  def step(self):
    """The compiled step on one device; it donates the state."""
    return jax.jit(make_train_step(self.config), donate_argnums=0)

  @functools.cached_property
  def history(self) -> tuple[list[TrainState], list[dict[str, np.ndarray]]]:
    """The states before, between and after the recorded steps, and each step's metrics; on the
    host."""
    state = self.state()
    states, metrics = [jax.device_get(state)], []
    for row in self.record["rows"]:
      state, values = self.step(state, self.batch(row["it"]))
      states.append(jax.tree.map(np.array, jax.device_get(state)))
      metrics.append(jax.device_get(values))
    return states, metrics


@pytest.fixture(scope="session")
def trajectory(recipe):
  """`trajectory(name)`: the `Trajectory` "pretrain" or "gram"; compiled and run once a session."""
  return functools.cache(lambda name: Trajectory(name, recipe))


@pytest.fixture(scope="session")
def tiny_recipe(tmp_path_factory):
  """The path of a recipe that trains 8 steps within seconds on a folder of images."""
  folder = tmp_path_factory.mktemp("recipe")
  rng = np.random.default_rng(0)
  for i in range(60):
    path = folder / "images" / "ab"[i % 2] / f"{i}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 256, (20, 24, 3), np.uint8)).save(path)
  path = folder / "tiny.py"
  path.write_text(RECIPE.format(images=str(folder / "images")))
  return path


@pytest.fixture(scope="session")
def stored():
  """`stored(workdir)`: every array of a run's newest checkpoint, by its path."""

  def read(workdir):
    reader = ocp.PyTreeCheckpointHandler()
    folder = checkpoint.latest(workdir) / "state"
    numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray),
                         reader.metadata(folder).tree)
    tree = ocp.Checkpointer(reader).restore(folder, ocp.args.PyTreeRestore(restore_args=numpy))
    return {jax.tree_util.keystr(path): x
            for path, x in jax.tree_util.tree_flatten_with_path(tree)[0]}

  return read


@pytest.fixture
def tiny_config():
  """Settings of a model that compiles and runs in no time, in float32 and without randomness."""
  config = base.get_config()
  config.model.update(width=32, depth=2, num_heads=2, patch_size=8, drop_path=0.0,
                      storage_tokens=1, layerscale=0.5)
  config.model.rope.dtype = "float32"
  for head in (config.dino, config.ibot):
    head.update(prototypes=64, hidden=32, bottleneck=16)
  config.koleo.group = 4
  config.crops.update(global_sizes=(32,), local_sizes=(16,), locals=3)
  config.train.update(steps=100, batch_size=4, dtype="float32")
  for name in ("lr", "teacher_temp"):
    config.schedules[name].warmup_steps = 10
  config.optim.freeze_last_layer_steps = 2
  return config
