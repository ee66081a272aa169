"""DINO and iBOT heads on a backbone that is somebody else's, so that it can be distilled.

  python -m dinov3_jax.main --config=configs/foreign_heads.py:transformers:facebook/dinov2-small \\
    --workdir=runs/dinov2_heads --config.data.source=FOLDER
  python -m dinov3_jax.main --config=configs/distill.py:vits16 --workdir=runs/student \\
    --config.distill.teacher=runs/dinov2_heads --config.data.source=FOLDER ...

After the first colon is a vision model of `transformers`, or the name `module:function` of a
function from images to CLS and patches (`dinov3_jax/models/foreign.py` says which). The backbone
stays as it is; the heads learn as in DINO, but that there is no token for a masked patch, so that
iBOT compares patches that both sides see. `docs/stages.md` says what is to be set of a student.

Cost: 20,000 steps of 256 images. What the backbone takes is not known here; a model of transformers
runs on the host's CPU, which then sets the pace.
Expect: it has not been run at full length.
Source: the heads' phase of continued pretraining, of which there is no recipe in the reference.
"""

from ml_collections import ConfigDict

from configs import base
from dinov3_jax.models import callables

STEPS = 20_000


def get_config(name: str = "") -> ConfigDict:
  config = base.get_config()
  told = callables.describe(name) if name else {}
  patch = told.get("patch_size", 16)
  with config.unlocked():
    config.model = base.foreign(name, told.get("width", 384), patch, told.get("host", False))
  config.crops.update(global_sizes=(14 * patch,), local_sizes=(6 * patch,), locals=4,
                      **{key: told[key] for key in ("mean", "std") if key in told})
  for head in (config.dino, config.ibot):
    head.update(prototypes=8192)
  config.koleo.weight = 0.0  # of features that do not change
  config.schedules.update(
    lr=base.cosine(5e-4, 1e-6, warmup_steps=1000),
    weight_decay=base.constant(0.04),
    momentum=base.cosine(0.994, 1.0),
    teacher_temp=base.linear(0.04, 0.07, 5000))
  config.train.update(steps=STEPS, batch_size=256)
  config.checkpoint.update(every=1000, keep_every=0)
  config.health.images = 0
  config.evals.update(every=STEPS, image_size=14 * patch, picture_size=14 * patch)
  return config
