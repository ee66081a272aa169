"""ViT-L/16 on ImageNet-1k: the reference's fast recipe (vitl_im1k_lin834), which is every default.

  python -m dinov3_jax.main --config=configs/vitl16_in1k.py --workdir=runs/vitl16_in1k

Cost: 125,000 steps of 2,048 images. The reference took 14 hours on 32 H100 for it. Computed:
2,356 TFLOP a step, 207 H100-hours at 40 % of the peak.
Expect: the reference reports 82.0 % k-NN and 83.5 % linear accuracy on ImageNet-1k; at full length
this implementation has not been run.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
  return base.get_config()
