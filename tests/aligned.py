"""dino.txt recorded from the reference, and tiny trainings of it to run."""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from configs import dinotxt_vitl16
from configs.base import constant, warmup_cosine
from dinov3_jax.evals.session import Session
from dinov3_jax.text import networks
from dinov3_jax.text.loading import load_text
from dinov3_jax.text.state import state_from_params
from dinov3_jax.text.training import prepare_text
from dinov3_jax.train import loop, sharding
from dinov3_jax.weights import architecture, naming

GOLDEN = pathlib.Path(__file__).parent / "golden"


class Recording:
  """Steps of dino.txt recorded from the reference.

  Attributes:
    record: the file.
    config: its settings as ours.
    backbone: the settings of its frozen backbone.
  """

  def __init__(self, name: str, recipe):
    self.record = r = json.loads((GOLDEN / f"trajectory_{name}.json").read_text())
    self._recipe, net = recipe, r["backbone"]
    self.backbone = dict(
      width=net["embed_dim"], depth=net["depth"], num_heads=net["num_heads"],
      ffn=net["ffn_layer"], ffn_ratio=net["ffn_ratio"], storage_tokens=net["n_storage_tokens"],
      layerscale=net["layerscale_init"], mask_k_bias=net["mask_k_bias"], norm="layernorm",
      norm_eps=1e-5, patch_size=16, rope=dict(base=100.0, dtype="float32"))
    head, text, gram = r["head"], r["text"], r["gram"]
    self.config = config = dinotxt_vitl16.get_config()
    config.embedding = r["embed"]
    config.vision_head.update(depth=head["vision_model_num_head_blocks"],
                              drop_path=head["vision_model_head_blocks_drop_path"])
    config.text.update(vocabulary=r["vocab"], context=r["context"], width=text["dim"],
                       depth=text["num_layers"], num_heads=text["num_heads"],
                       ffn_ratio=text["ffn_ratio"])
    if gram is not None:
      config.gram.update(weight=gram["weight"], normalized=gram["normalize"])
    config.schedules.update(lr=warmup_cosine(0.0, r["lr"], 0.0, r["warm"]),
                            weight_decay=constant(r["wd"]))
    config.optim.update(b1=r["betas"][0], b2=r["betas"][1])
    config.logit_scale.highest = float(np.exp(r["logit_scale_clamp"][1]))
    config.train.update(steps=r["total"], batch_size=r["B"], dtype="float32", remat="none")

  @functools.cached_property
  def _arrays(self) -> dict[str, np.ndarray]:
    return {name: self._recipe.parameter(name, tuple(shape), self.record["salt"])
            for name, shape in self.record["shapes"].items()}

  @functools.cached_property
  def backbone_params(self):
    """The frozen backbone's parameters."""
    prefix = "visual_model.backbone."
    arrays = {name.removeprefix(prefix): x for name, x in self._arrays.items()
              if name.startswith(prefix)}
    return naming.unflatten(arrays, architecture.abstract(self.backbone)[1])

  @functools.cached_property
  def student(self):
    """The trained parameters before the first step."""
    arrays = {name: x for name, x in self._arrays.items() if ".backbone." not in name
              or name.startswith("text_model.")}
    shapes = networks.abstract_modules(self.config, self.backbone)[1]
    return networks.from_official_tree(
      naming.unflatten(arrays, networks.official_tree(shapes)))

  def state(self):
    """A new copy of the state before the first step."""
    return state_from_params(self.config, jax.tree.map(jnp.asarray, self.student))

  def pairs(self, step: int) -> dict[str, np.ndarray]:
    """A step's `images`, normalised [B, S, S, 3], and `tokens` [B, T]."""
    r = self.record
    pairs = self._recipe.pairs(step, seed=r["batch_seed"], images=r["B"], size=r["S"],
                               context=r["context"], vocab=r["vocab"])
    return dict(images=pairs["images"].transpose(0, 2, 3, 1),
                tokens=pairs["tokens"].astype(np.int32))

  def named(self, student) -> dict[str, np.ndarray]:
    """Trained parameters by official name."""
    return naming.flatten(networks.official_tree(jax.device_get(student)))


@pytest.fixture(scope="session")
def recording(recipe):
  """`recording(name)`: that of `trajectory_NAME.json`."""
  return functools.cache(lambda name: Recording(name, recipe))


COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (30, 50, 220),
           "white": (240, 240, 240), "black": (10, 10, 10), "yellow": (230, 220, 40)}


@pytest.fixture(scope="session")
def captioned(tmp_path_factory):
  """A folder with 36 images of six colours, in folders for splits, and two captions each."""
  folder = tmp_path_factory.mktemp("captioned")
  rng = np.random.default_rng(0)
  for i in range(36):
    name = list(COLOURS)[i % 6]
    path = folder / ("val" if i >= 24 else "train") / name / f"{i}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.clip(COLOURS[name] + rng.normal(0, 5, (20, 24, 3)), 0, 255).astype(np.uint8)
    Image.fromarray(pixels).save(path)
    path.with_suffix(".txt").write_text(f"{name}\na {name} square\n")
  return folder


def tiny_text(captioned, backbone):
  """Four steps of a tiny text tower on the frozen backbone of a run."""
  config = dinotxt_vitl16.get_config()
  config.backbone.update(weights=str(backbone), model="")
  config.embedding = 32
  config.vision_head.update(layerscale=0.1, drop_path=0.25)
  config.text.update(context=6, width=16, depth=1, num_heads=2)
  config.schedules.update(lr=constant(3e-3))
  config.images.size = 16
  config.data.update(source=str(captioned), workers=0)
  config.train.update(steps=4, batch_size=16, dtype="float32", remat="none")
  config.checkpoint.update(every=2, keep=2, keep_every=0)
  config.evals.update(every=4, images=12)
  config.log_every = 1
  return config


@pytest.fixture
def text_config(captioned, teacher_run):
  return tiny_text(captioned, teacher_run)


@pytest.fixture(scope="session")
def text_run(captioned, teacher_run, tmp_path_factory):
  """The folder of a tiny run that has done its four steps, on the first device."""
  config = tiny_text(captioned, teacher_run)
  config.mesh.update(data=1)
  folder = tmp_path_factory.mktemp("text_run")
  make_mesh = sharding.make_mesh
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(sharding, "make_mesh",
                  lambda config, devices=None: make_mesh(config, devices or jax.devices()[:1]))
    loop.train(config, folder, prepare=prepare_text)
  return folder


@pytest.fixture
def text_session(text_run, tmp_path):
  """`text_session(data, **settings)`: a session of the tiny run on a folder."""

  def make(data, **settings):
    model = load_text(text_run)
    return Session(model, model.preprocess, data, tmp_path / "cache", **settings)

  return make
