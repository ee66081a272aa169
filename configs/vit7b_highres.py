"""ViT-7B/16, last of three stages: adaptation to high and mixed resolutions (paper, section 5.1).

  python -m dinov3_jax.main --config=configs/vit7b_highres.py --workdir=runs/vit7b_highres \
    --config.data.source=FOLDER

Starts from the teacher of `vit7b_gram.py` in runs/vit7b_gram, which also stays the Gram teacher to
the end; another place: --config.init_from=FOLDER. Every step draws one of five resolutions for its
whole batch, and each of them compiles once.

Cost: 30,000 steps of 2,048 images with crops of up to 768 px, 1,152 px in the Gram teacher. The
training state is 139 GB. Computed: 657,173 TFLOP a step on average, 13,843 H100-hours at 40 % of
the peak.
Expect: it has not been run at full length.
"""

from ml_collections import ConfigDict

from configs import base, vit7b_gram


def get_config() -> ConfigDict:
  config = vit7b_gram.get_config()
  config.init_from = "runs/vit7b_gram"
  config.gram.update(refresh_every=0, refresh_first=0, max_refreshes=None)
  config.schedules.update(
    lr=base.warmup_cosine(0.0, 0.0, 1.25e-5, cosine_steps=10_000),
    dino_local_weight=base.constant(0.5),
    gram_weight=base.constant(1.5))
  config.crops.update(
    global_sizes=(512, 768, 768, 768, 768),
    local_sizes=(112, 112, 168, 224, 336),  # 168: 10 patches a side, the last 8 px are not read
    gram_sizes=(768, 1152, 1152, 1152, 1152),
    size_weights=(0.3, 0.3, 0.3, 0.05, 0.05))
  config.koleo.group = 8  # all that a device has; the reference joins two for 16
  config.train.update(steps=30_000, batch_size=2048)
  config.checkpoint.every = 250
  return config
