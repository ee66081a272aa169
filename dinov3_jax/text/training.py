"""A run of dino.txt, ready for the loop of `train.loop`: everything checked, nothing compiled."""

import dataclasses
import functools
import logging
from collections.abc import Callable, Mapping
from typing import Any

import jax
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict

from dinov3_jax.costs.flops import StepFlops
from dinov3_jax.data.decode import Decoder
from dinov3_jax.data.pairs import Pairs, open_pairs
from dinov3_jax.data.pairs.captions import notes
from dinov3_jax.data.pipeline import Pipeline
from dinov3_jax.text import backbone as backbones
from dinov3_jax.text.backbone import Backbone
from dinov3_jax.text.cached import CachedPairs, open_cached, tokens_of
from dinov3_jax.text.costs import step_flops
from dinov3_jax.text.evaluation import TextEvaluation
from dinov3_jax.text.settings import check_settings
from dinov3_jax.text.state import TextState, init_state
from dinov3_jax.text.step import make_train_step
from dinov3_jax.text.stream import Stored, View, Windows, make_pair_pipeline
from dinov3_jax.text.tokenizer import Tokenizer
from dinov3_jax.train import checkpoint, prepare, sharding
from dinov3_jax.train.hooks import Hook
from dinov3_jax.train.images import DECODING
from dinov3_jax.train.inputs import Batch, fetch, open_held_out
from dinov3_jax.train.prepare import Run

log = logging.getLogger(__name__)


@dataclasses.dataclass
class TextRun(Run):
  """A run of dino.txt; see `Run`.

  Attributes:
    backbone: the frozen one.
    tokenizer: of the captions.
  """

  backbone: Backbone | None = None
  tokenizer: Tokenizer | None = None

  def fresh_state(self) -> TextState:
    """The state before the first step, every array born on its own shard."""
    layout = jax.tree.map(lambda x: x.sharding, self.abstract_state)
    init = functools.partial(init_state, self.config, self.backbone.settings)
    return jax.jit(init, out_shardings=layout)()

  def with_targets(self, batch: Batch) -> Batch:
    """A batch as the step takes it; see `with_backbone_of`."""
    return with_backbone_of(self.backbone, batch)

  def observers(self, last: dict[str, float]) -> dict[str, Callable[[], Hook]]:
    """What looks at the state beside the steps, by name."""
    if self.held_out is None:
      return {}
    done = self.start if "image_to_text_10" in last else None
    return {"evaluation": lambda: TextEvaluation(
      self.config, self.mesh, self.backbone, self.held_out, self.tokenizer, done)}

  def flops(self, batch: Batch) -> StepFlops:
    """The operations of a step; those of the frozen backbone only where the step does them."""
    return step_flops(self.config, self.backbone.settings, sharding.data_shards(self.mesh))

  def describe(self) -> str:
    """What is about to be trained, in words."""
    count = sum(x.size for x in jax.tree.leaves(self.abstract_state.student))
    held_out = f" ({len(self.held_out):,} held out)" if self.held_out is not None else ""
    return (f"dino.txt with {count:,} trained parameters on {len(self.source):,} images with "
            f"{self.source.captions.count:,} captions{held_out}")


def prepare_text(config: ConfigDict, workdir: epath.PathLike, profile: int = 0) -> TextRun:
  """Checks all that can be wrong with a run of dino.txt; see `train.prepare.prepare`."""
  workdir = epath.Path(workdir).expanduser()
  check_settings(config)
  mesh = sharding.make_mesh(config)
  tokenizer = Tokenizer()
  source = open_split(config, "train")
  for note in notes(source.captions, tokenizer.encode, config.text.context):
    log.warning("%s: %s", config.data.source, note)
  pipeline = open_pipeline(config, source, Windows.of(config.images), tokenizer, mesh)
  prepare.check_writable(workdir)
  if jax.process_index() == 0:
    with prepare.lock(workdir):  # to refuse it now; the run takes it again
      pass

  newest = next(iter(checkpoint.newest_first(workdir)), None)
  frozen = backbones.read(config.backbone.weights, config.backbone.model, mesh, config.train.dtype,
                          [config.backbone.digest, _named(newest)])
  if config.images.size % frozen.patch:
    raise ValueError(f"images.size {config.images.size} is not a multiple of the backbone's "
                     f"patches of {frozen.patch} pixels")
  config = with_backbone(config, frozen)
  abstract_state = sharding.abstract_state(
    mesh, functools.partial(init_state, config, frozen.settings))
  memory = mesh.local_devices[0].memory_stats() or {}
  sharding.check_memory((abstract_state, frozen.params), memory.get("bytes_limit"))
  folder, position, damaged = prepare.find(config, workdir, abstract_state)
  if config.features.views:
    cached = open_cached(source, frozen, config, mesh)
    pipeline = open_pipeline(config, cached, Stored(cached.shape, cached.dtype), tokenizer, mesh)
  if folder is not None:
    pipeline.set_state(position)
  first = fetch(pipeline, mesh)
  step = jit_step(config, frozen.settings, mesh, abstract_state)
  step.trace(abstract_state, with_backbone_of(frozen, first[0]))
  return TextRun(config, workdir, source, open_held_out(config, open_split), pipeline, mesh,
                 abstract_state, step, first, folder, damaged, profile, backbone=frozen,
                 tokenizer=tokenizer)


def open_split(config: ConfigDict, split: str) -> Pairs:
  """The pairs of a split of `config.data.source`, decoded as `config.data` says."""
  settings = {key: config.data[key] for key in DECODING.intersection(config.data.keys())}
  return open_pairs(config.data.source, split, Decoder(**settings))


def open_pipeline(config: ConfigDict, source: Pairs | CachedPairs, view: View,
                  tokenizer: Tokenizer, mesh: Mesh) -> Pipeline:
  """The stream of batches that the config describes, of them this process's share.

  Raises:
    ValueError: sizes or counts that do not fit together.
  """
  sharding.check_parts(config.train.batch_size, sharding.data_shards(mesh),
                       config.train.micro_batches)
  return make_pair_pipeline(
    source, view, tokenizer, config.train.batch_size, context=config.text.context,
    shards=sharding.data_shards(mesh), local_shards=sharding.local_shards(mesh), seed=config.seed,
    workers=config.data.workers, max_damaged=config.data.max_damaged)


def with_backbone_of(backbone: Backbone, batch: Batch) -> Batch:
  """A batch as the step takes it: with the parameters of the frozen backbone for its images, or
  with its cached features as the backbone would return them."""
  if "features" in batch:
    return batch | dict(features=tokens_of(batch["features"],
                                           backbone.settings.get("storage_tokens", 0)))
  return batch | dict(backbone=backbone.params)


def with_backbone(config: ConfigDict, frozen: Backbone) -> ConfigDict:
  """The settings as checkpoints keep them: with the backbone's digest and its images' colours."""
  config = config.copy_and_resolve_references()
  config.backbone.digest = frozen.digest
  config.images.update(mean=frozen.mean, std=frozen.std)
  return config


def jit_step(config: ConfigDict, backbone: Mapping[str, Any], mesh: Mesh,
             abstract_state: TextState) -> Callable:
  """The step as training compiles it for the devices of a mesh."""
  return prepare.jit_step(config, mesh, abstract_state,
                          lambda config, mesh: make_train_step(config, backbone, mesh))


def _named(folder: epath.Path | None) -> str:
  """The digest of the backbone that a checkpoint names; "" if it cannot be told."""
  if folder is None:
    return ""
  try:
    return checkpoint.stored_config(folder).get("backbone", {}).get("digest", "")
  except checkpoint.DamagedCheckpoint:
    return ""
