"""A small ViT on OpenMoji's drawings, for a laptop's CPU; the images come with the packages.

  bash launch/quickstart.sh

Cost: 600 steps of 128 images at 64 px.
"""

from ml_collections import ConfigDict

from configs import base

STEPS = 600


def get_config() -> ConfigDict:
  config = base.get_config()
  config.model.update(patch_size=8, width=192, depth=4, num_heads=3, drop_path=0.0,
                      storage_tokens=4, mask_k_bias=True, norm_eps=1e-5)
  config.model.rope.update(rescale=2.0, dtype="float32")
  config.dino.update(prototypes=4096, hidden=512, bottleneck=128)
  config.ibot.update(prototypes=2048, hidden=512, bottleneck=128)
  config.schedules.update(
    lr=base.cosine(1e-3, 1e-6, warmup_steps=STEPS // 10),
    teacher_temp=base.linear(0.04, 0.07, STEPS // 3))
  config.optim.freeze_last_layer_steps = STEPS // 100
  config.crops.update(global_sizes=(64,), local_sizes=(32,), locals=4)
  config.data.update(source="openmoji:base", workers=0)
  config.train.update(steps=STEPS, batch_size=128, dtype="float32")
  config.checkpoint.update(every=100, keep=1, keep_every=0)
  config.evals.update(every=200, knn_k=5, image_size=64)
  return config
