"""ViT-T/16 on ImageNet-1k, from scratch, a size below the released family.

  python -m dinov3_jax.main --config=configs/vitt16.py --workdir=runs/vitt16

Cost: 125,000 steps of 2,048 images, 200 passes over the data, on any number of devices. Computed:
88 TFLOP a step, 8 H100-hours at 40 % of the peak.
Expect: it has not been run at full length. There is no released model of this size.
Source: as `vitb16.py`; the width and heads that DeiT gave this size, without stochastic depth.
"""

from ml_collections import ConfigDict

from configs import vitb16


def get_config() -> ConfigDict:
  config = vitb16.get_config()
  config.model.update(width=192, num_heads=3, drop_path=0.0)
  return config
