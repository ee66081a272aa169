"""Continued pretraining of anybody's backbone on one's own images, without forgetting.

  python -m dinov3_jax.main --config=configs/adapt.py:WEIGHTS --workdir=runs/adapted \\
    --config.data.source=FOLDER

WEIGHTS is a variant, a key of `dinov3_jax.VARIANTS`, which means its published weights, or whatever
`dinov3_jax.load` takes: an id of the Hugging Face hub, a folder, a `.pth` or `.safetensors` file, a
run's folder. The network's settings, and the mean and deviation of images, follow the weights.

Released backbones have no heads. So at first the backbone is frozen, and fresh heads learn; then
its rate and its decay rise; then all stays constant until the end. A frozen copy of the start holds
the similarities of patches (Gram anchoring) and the direction of the CLS feature, both from one
forward pass. A second source shows what is forgotten: --config.evals.general=FOLDER; the best step
is kept with --config.evals.best=knn_top1. --config.model.adapter_rank=16 trains low-rank adapters
in place of the backbone's own weights.

Cost: 10,000 steps of 256 images. From `vits16`, 36 TFLOP a step: 15 minutes of an H100 at 40 % of
its peak; --config.train.micro_batches makes it need less memory.
Expect: benchmarks/adapt.md has what it does to a small backbone on two other sources. It has not
been run on a released one.
Source: not in the paper or the reference. docs/decisions.md says what was tried.
"""

from ml_collections import ConfigDict

from configs import base
from dinov3_jax.data.preprocess import preprocess
from dinov3_jax.models.variants import VARIANTS
from dinov3_jax.train import origin

FREEZE, RAMP = 1000, 1000


def get_config(weights: str = "vits16") -> ConfigDict:
  config = base.get_config()
  for head in (config.dino, config.ibot):
    head.prototypes = 8192
  follow(config, weights)
  # While the backbone is frozen, too: heads learn to read features as all later steps make them.
  config.model.drop_path = min(config.model.drop_path, 0.1)
  config.schedules.update(
    lr=base.constant(5e-5 / 4),  # the scaling rule multiplies by 4 sqrt(batch / 1024)
    weight_decay=base.constant(0.04),
    # The average of fresh heads must follow them while the backbone's is frozen.
    momentum=base.linear(0.99, 0.9999, FREEZE + RAMP),
    teacher_temp=base.linear(0.04, 0.07, FREEZE + RAMP),
    gram_weight=base.constant(1.0))
  config.optim.update(layerwise_decay=0.9, freeze_last_layer_steps=0,
                      freeze_backbone_steps=FREEZE, ramp_backbone_steps=RAMP)
  config.koleo.group = 16
  config.gram.teacher = "own"
  config.cls_preservation.weight = 1.0
  config.train.update(steps=10_000, batch_size=256)
  config.checkpoint.update(every=1000, keep_every=5000)
  config.evals.every = 1000
  config.health.reference_at = 0
  return config


def follow(config: ConfigDict, weights: str):
  """Gives a recipe the weights to start from, and the network and the normalisation that fit them.

  Args:
    config: of the recipe; heads that are there give theirs their sizes, too.
    weights: a key of `dinov3_jax.VARIANTS`, for its first release, or as `dinov3_jax.load` takes.
  """
  path = weights
  if weights in VARIANTS:
    release = next(iter(VARIANTS[weights].releases.values()))
    if release.repo is None:
      raise ValueError(f"the weights of {weights} are not on the Hugging Face hub: give their file")
    path, heads = release.repo, {}
    settings = {**VARIANTS[weights].settings, **release.changes}
  else:
    found = origin.find(weights)
    settings, heads = found.settings, found.heads
  config.init_from = path
  if "depths" in settings:
    with config.unlocked():
      config.model = base.convnext(settings["depths"], settings["dims"])
  else:
    rope = settings.get("rope") or {}
    config.model.update({key: x for key, x in settings.items() if key != "rope"})
    config.model.rope.update(rope)
  for name, sizes in heads.items():
    config[name.removesuffix("_head")].update(sizes)
  prepare = preprocess(path)
  config.crops.update(mean=tuple(prepare.mean), std=tuple(prepare.std))
