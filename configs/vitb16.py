"""ViT-B/16 on ImageNet-1k, from scratch, with the structure of the released family.

  python -m dinov3_jax.main --config=configs/vitb16.py --workdir=runs/vitb16

Cost: 125,000 steps of 2,048 images, 200 passes over the data, on any number of devices. Computed:
879 TFLOP a step, 77 H100-hours at 40 % of the peak.
Expect: it has not been run at full length. The released ViT-B was distilled from the 7B model on
another data set; do not take its figures for this recipe's.
Source: `vitl16_in1k.py`; storage tokens, RoPE rescaling, masked K bias and
the norm's epsilon as in the released models.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
  config = base.get_config()
  config.model.update(width=768, depth=12, num_heads=12, drop_path=0.1, storage_tokens=4,
                      mask_k_bias=True, norm_eps=1e-5)
  config.model.rope.rescale = 2.0
  return config
