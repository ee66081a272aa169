"""A family of small models that learn from a large one in one run, which works once for all.

  python -m dinov3_jax.main --config=configs/distill_family.py --workdir=runs/family \\
    --config.distill.teacher=runs/vit7b_highres

The students are S, S+, B, L and H+; `--config=configs/distill_family.py:vits16,vitb16` makes it
these two, and `:convnext_tiny,convnext_small,convnext_base,convnext_large` the ConvNeXts, which
need a teacher's forward pass of their own: it sees their crops of 512 px at half the side. Each
student is a run of its own, `runs/family/vits16` and so on, with the recipe of `distill.py`. Leave
one out, or add one, and start the same command again: the others go on as if nothing had happened.

Cost: 625,000 steps of 4,096 images, each 60.8 PFLOP for the five students, of which the teacher is
29.2: 57,000 hours of a TPU v5p chip at 40 % of its peak. Five runs of one would take 168,000.
Expect: as `distill.py`; it has not been run at full length.
Source: as `distill.py`. The reference gives each student devices of its own.
"""

from ml_collections import ConfigDict

from configs import distill

VITS = "vits16,vits16plus,vitb16,vitl16,vith16plus"


def get_config(names: str = VITS) -> ConfigDict:
  names = names.split(",")
  config = distill.get_config(names[0])
  with config.unlocked():
    for name in names:
      config.students[name] = distill.student(name)
  return config
