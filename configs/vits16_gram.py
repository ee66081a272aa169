"""ViT-S/16, Gram anchoring after its pretraining: the 7B's second stage, scaled down.

  python -m dinov3_jax.main --config=configs/vits16_gram.py --workdir=runs/vits16_gram

Starts from the teacher of `vits16.py` in runs/vits16; another place: --config.init_from=FOLDER.
That teacher is also the first Gram teacher; where an earlier one has better patches
(docs/stages.md), say --config.gram.init_from=runs/vits16/checkpoints/30000.

Cost: 25,000 steps of 2,048 images, each also as two crops of 448 px in the Gram teacher. Computed:
432 TFLOP a step, 8 H100-hours at 40 % of the peak.
Expect: it has not been run at full length. The paper anchors its 7B model alone.
Source: `vit7b_gram.py`; as there a fifth of the steps before it, 0.6 times the peak rate, Gram
crops of twice the side and refreshes at each twentieth. The rate rises and falls anew, for that of
`vits16.py` has ended near zero.
Next: `vits16_highres.py`.
"""

from ml_collections import ConfigDict

from configs import base, vits16


def get_config() -> ConfigDict:
  config = vits16.get_config()
  config.init_from = "runs/vits16"
  config.gram.update(teacher="own", refresh_every=1250, refresh_first=1250, max_refreshes=3)
  config.schedules.update(
    lr=base.cosine(6e-4, 1e-6, warmup_steps=1250),
    weight_decay=base.constant(0.4),
    momentum=base.constant(0.999),
    teacher_temp=base.constant(0.07),
    dino_local_weight=base.warmup_cosine(1.0, 1.0, 0.5, cosine_steps=1000),
    gram_weight=base.warmup_cosine(0.0, 0.0, 2.0, cosine_steps=1000))
  config.optim.freeze_last_layer_steps = 0
  config.crops.update(gram_sizes=(448,), gram_distortions=False)
  config.train.steps = 25_000
  config.health.reference_at = 0
  return config
