"""A small model that learns from a large one: any ViT/16 of the table, or any ConvNeXt.

  python -m dinov3_jax.main --config=configs/distill.py:vits16 --workdir=runs/distill_vits16 \\
    --config.distill.teacher=runs/vit7b_highres

The name after the colon is the student, a key of `dinov3_jax.VARIANTS`. The teacher, which stays as
it is, must have heads: a run's folder, or an export of one with `--heads`.

Cost: 625,000 steps of 4,096 images. From the 7B, a step is 29.2 PFLOP of the teacher and 0.7 of a
ViT-S, 2.3 of a ViT-B, 7.5 of a ViT-L or 20.2 of a ViT-H+, of a ConvNeXt 2.2 (tiny) to 15.6 (large):
for ViT-S 28,000 hours of a TPU v5p chip at 40 % of its peak.
Expect: it has not been run at full length. The published students were distilled on another data
set; do not take their figures for this recipe's.
Source: the reference's recipe for ConvNeXts, of which the ViTs' crops differ. Only the final stage
of its ViTs is published.
"""

from ml_collections import ConfigDict

from configs import base
from dinov3_jax.models.variants import variant

STEPS = 625_000
HEADS = dict(dino=dict(prototypes=262_144, bottleneck=512, hidden=8192),
             ibot=dict(prototypes=98_304, bottleneck=384, hidden=4096))


def student(name: str) -> dict:
  """The sections of a student's own: its network, schedules and optimizer."""
  settings = variant(name).settings
  convolutional = "depths" in settings
  config = base.get_config()
  if convolutional:
    model = base.convnext(settings["depths"], settings["dims"])
  else:
    model = config.model
    model.update(settings, drop_path=0.0)
    model.rope.dtype = "bfloat16"
  large = name in ("vitl16", "vitl16plus", "vith16plus", "convnext_base", "convnext_large")
  config.schedules.update(
    lr=base.warmup_cosine(1e-6, 1e-4 if large else 2e-4, 1e-6, warmup_steps=100_000),
    weight_decay=base.linear(0.04, 0.2, STEPS), momentum=base.linear(0.994, 1.0, STEPS),
    teacher_temp=base.linear(0.04, 0.07, 150_000))
  config.optim.update(layerwise_decay=1.0, freeze_last_layer_steps=1250)
  return dict(model=model, schedules=config.schedules, optim=config.optim)


def get_config(name: str = "vits16") -> ConfigDict:
  config = base.get_config()
  own = student(name)
  with config.unlocked():
    for section, settings in own.items():
      config[section] = settings
  config.distill.teacher = "runs/vit7b_highres"
  for head, sizes in HEADS.items():
    config[head].update(sizes)
  convolutional = "depths" in config.model
  config.crops.update(global_sizes=(512 if convolutional else 256,),
                      local_sizes=(224 if convolutional else 112,), horizontal_flip=False)
  config.koleo.group = 32
  config.train.update(steps=STEPS, batch_size=4096, prototype_chunks=16)
  return config
