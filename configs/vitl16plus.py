"""ViT-L+/16 on ImageNet-1k, from scratch, with the structure of the released family.

  python -m dinov3_jax.main --config=configs/vitl16plus.py --workdir=runs/vitl16plus

Cost: 125,000 steps of 2,048 images, 200 passes over the data, on any number of devices. Computed:
3,268 TFLOP a step, 287 H100-hours at 40 % of the peak.
Expect: it has not been run at full length. The released ViT-L+ was distilled from the 7B model on
another data set; do not take its figures for this recipe's.
Source: as `vitb16.py`, with the gated feed-forward network of the released model and the rate of
stochastic depth of `vitl16_in1k.py`.
"""

from ml_collections import ConfigDict

from configs import vitb16


def get_config() -> ConfigDict:
  config = vitb16.get_config()
  config.model.update(width=1024, depth=24, num_heads=16, ffn="swiglu", ffn_ratio=6.0,
                      drop_path=0.3)
  return config
