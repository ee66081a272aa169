"""ViT-S/16 on ImageNet-1k, from scratch, with the structure of the released family.

  python -m dinov3_jax.main --config=configs/vits16.py --workdir=runs/vits16

Cost: 125,000 steps of 2,048 images, 200 passes over the data, on any number of devices. Computed:
245 TFLOP a step, 22 H100-hours at 40 % of the peak.
Expect: it has not been run at full length. The released ViT-S was distilled from the 7B model on
another data set; do not take its figures for this recipe's.
Source: as `vitb16.py`.
"""

from ml_collections import ConfigDict

from configs import vitb16


def get_config() -> ConfigDict:
  config = vitb16.get_config()
  config.model.update(width=384, num_heads=6)
  return config
