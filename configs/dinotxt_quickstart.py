"""dino.txt on OpenMoji's drawings and their names, for a laptop's CPU.

  bash launch/quickstart.sh && . .venv/bin/activate
  python -m dinov3_jax.main --config=configs/dinotxt_quickstart.py --workdir=runs/dinotxt

The backbone is the quickstart's run. See benchmarks/text.md for what it reaches and what it costs.
"""

from ml_collections import ConfigDict

from configs import dinotxt_vitl16
from configs.base import constant, warmup_cosine

STEPS = 200


def get_config() -> ConfigDict:
  config = dinotxt_vitl16.get_config()
  config.backbone.update(weights="runs/quickstart", model="")
  config.embedding = 256
  config.vision_head.update(layerscale=0.1, drop_path=0.0)
  config.text.update(context=12, width=128, depth=1, num_heads=4)
  config.schedules.update(lr=warmup_cosine(0.0, 2e-3, 0.0, warmup_steps=50),
                          weight_decay=constant(0.1))
  # A drawing that points to the left is named so.
  config.images.update(size=32, scale=(0.5, 1.0), horizontal_flip=False)
  config.features.views = 32  # 350 MB
  config.data.update(source="openmoji:base", workers=0)
  config.train.update(steps=STEPS, batch_size=256, dtype="float32", remat="none")
  config.checkpoint.update(every=100, keep=1, keep_every=0)
  config.evals.update(every=50, images=1000, templates=("{}",))
  return config
