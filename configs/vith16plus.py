"""ViT-H+/16 on ImageNet-1k, from scratch, with the structure of the released family.

  python -m dinov3_jax.main --config=configs/vith16plus.py --workdir=runs/vith16plus

Cost: 125,000 steps of 2,048 images, 200 passes over the data, on any number of devices. Computed:
5,986 TFLOP a step, 525 H100-hours at 40 % of the peak. The training state is 14 GB, a
copy on every device; to spread it, say --config.mesh.fsdp=-1 --config.mesh.data=1.
Expect: it has not been run at full length. The released ViT-H+ was distilled from the 7B model on
another data set; do not take its figures for this recipe's.
Source: as `vitb16.py`, with the gated feed-forward network of the released model and the rate of
stochastic depth of the 7B's.
"""

from ml_collections import ConfigDict

from configs import vitb16


def get_config() -> ConfigDict:
  config = vitb16.get_config()
  config.model.update(width=1280, depth=32, num_heads=20, ffn="swiglu", ffn_ratio=6.0,
                      drop_path=0.4)
  return config
