"""Heads of DINO and iBOT for a backbone that was released without: all else stays frozen.

  python -m dinov3_jax.main --config=configs/heads.py:WEIGHTS --workdir=runs/heads \\
    --config.data.source=FOLDER

WEIGHTS is as for `adapt.py`. The run's checkpoints hold the backbone as it was, bit for bit, and
the heads: a teacher for `distill.py`, with --config.distill.teacher=runs/heads. Its students need
as many prototypes as it has: --config.dino.prototypes=8192 --config.ibot.prototypes=8192.

Cost: 2,000 steps of 256 images. From `vits16`, 14 TFLOP a step: 1 minute of an H100 at 40 % of its
peak. No gradient reaches the backbone, and it has no moments.
Expect: it has not been run at full length. Twice the steps in which `adapt.py` trains its heads.
Source: the first phase of `adapt.py`.
"""

from ml_collections import ConfigDict

from configs import adapt, base

STEPS = 2000


def get_config(weights: str = "vits16") -> ConfigDict:
  config = adapt.get_config(weights)
  config.optim.update(freeze_backbone_steps=-1, ramp_backbone_steps=0)
  # Nothing of the backbone changes that would have to be held.
  config.gram.teacher = "none"
  config.cls_preservation.weight = 0.0
  config.model.drop_path = 0.0
  config.schedules.update(momentum=base.linear(0.99, 0.999, STEPS),
                          teacher_temp=base.linear(0.04, 0.07, STEPS // 2))
  config.train.steps = STEPS
  config.evals.every = 0
  return config
