"""Training without its cost: the loop and all around it, with a method that compiles in no time."""

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from configs import base
from dinov3_jax.train import loop, prepare, watching
from dinov3_jax.train.state import TrainState


@pytest.fixture(scope="session")
def quick_images(tmp_path_factory):
  """A folder of twelve images without labels."""
  folder = tmp_path_factory.mktemp("images")
  rng = np.random.default_rng(0)
  for i in range(12):
    Image.fromarray(rng.integers(0, 256, (20, 24, 3), np.uint8)).save(folder / f"{i}.png")
  return str(folder)


@pytest.fixture
def quick_config(quick_images):
  """Eight steps that save every second one, and evaluate nothing."""
  config = base.get_config()
  config.update_from_flattened_dict({
    "model.patch_size": 8, "crops.global_sizes": (16,), "crops.local_sizes": (8,),
    "crops.locals": 2, "data.source": quick_images, "data.workers": 0, "train.steps": 8,
    "train.batch_size": 8, "checkpoint.every": 2, "checkpoint.keep": 2, "checkpoint.keep_every": 0,
    "evals.every": 0, "log_every": 2, "health.images": 0, "schedules.lr.warmup_steps": 2,
    "schedules.teacher_temp.warmup_steps": 2, "koleo.group": 2})
  return config


class Method:
  """Parameters that remember all data they saw, in place of a network that learns.

  Attributes:
    bad_steps: steps that are not finite.
    norms: gradient norms by step; 1 where none is given.
    at: what to do by step, where observers look at the state.
  """

  def __init__(self):
    self.bad_steps, self.norms, self.at = (), {}, {}

  def init_state(self, config):
    params = lambda: {"backbone": {"cls_token": jnp.zeros((1, 1, 4))}}
    return TrainState(jnp.zeros((), jnp.int32), params(), params(), None, ())

  def make_train_step(self, config, mesh):
    norms = jnp.ones(config.train.steps + 2)
    for at, norm in self.norms.items():
      norms = norms.at[at].set(norm)

    def step(state, batch):
      seen = batch["global_crops"].astype(jnp.float32).mean()
      bad = jnp.isin(state.step + 1, jnp.array([-1, *self.bad_steps]))
      token = state.student["backbone"]["cls_token"]
      token = jnp.where(bad, token, 0.9 * token + seen)
      params = {"backbone": {"cls_token": token}}
      metrics = {"loss": jnp.where(bad, jnp.nan, seen), "skipped": bad.astype(jnp.float32),
                 "grad_norm/backbone": norms[state.step + 1]}
      return TrainState(state.step + 1, params, params, None, ()), metrics

    return step

  def make_watching(self, run):
    made, past = watching.make_watching(run)
    observe = made.observe

    def observe_and_act(step, state):
      found = observe(step, state)
      self.at.get(step, lambda: None)()
      return found

    made.observe = observe_and_act
    return made, past


@pytest.fixture
def stand_in(monkeypatch):
  """The method that is trained instead of DINOv3 while a test lasts."""
  method = Method()
  monkeypatch.setattr(prepare, "init_state", method.init_state)
  monkeypatch.setattr(prepare, "make_train_step", method.make_train_step)
  monkeypatch.setattr(loop, "make_watching", method.make_watching)
  return method
