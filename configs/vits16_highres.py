"""ViT-S/16, adaptation to high and mixed resolutions: the 7B's last stage, scaled down.

  python -m dinov3_jax.main --config=configs/vits16_highres.py --workdir=runs/vits16_highres

Starts from the teacher of `vits16_gram.py` in runs/vits16_gram, which also stays the Gram teacher
to the end; another place: --config.init_from=FOLDER. Every step draws one of five resolutions for
its whole batch, and each of them compiles once.

Cost: 3,750 steps of 1,024 images with crops of up to 768 px, 1,152 px in the Gram teacher.
Computed: 2,575 TFLOP a step on average, 7 H100-hours at 40 % of the peak.
Expect: it has not been run at full length. The paper adapts its 7B model and the students that it
distils, none that was trained from scratch.
Source: `vit7b_highres.py`, of which it has the crops; as there half the batch of the stage before,
15 % of its steps, and a quarter of the first stage's peak rate.
"""

from ml_collections import ConfigDict

from configs import base, vit7b_highres, vits16_gram


def get_config() -> ConfigDict:
  config = vits16_gram.get_config()
  config.init_from = "runs/vits16_gram"
  config.gram.update(refresh_every=0, refresh_first=0, max_refreshes=None)
  config.schedules.update(
    lr=base.warmup_cosine(0.0, 0.0, 2.5e-4, cosine_steps=1250),
    dino_local_weight=base.constant(0.5),
    gram_weight=base.constant(1.5))
  crops = vit7b_highres.get_config().crops
  config.crops.update({key: crops[key] for key in (
    "global_sizes", "local_sizes", "gram_sizes", "size_weights")})
  config.koleo.group = 8  # as in the 7B's: large crops leave a device few images
  config.train.update(steps=3750, batch_size=1024)
  config.checkpoint.every = 250
  return config
