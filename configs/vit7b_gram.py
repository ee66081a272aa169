"""ViT-7B/16, second of three stages: Gram anchoring for the patch features (paper, section 4).

  python -m dinov3_jax.main --config=configs/vit7b_gram.py --workdir=runs/vit7b_gram \
    --config.data.source=FOLDER

Starts from the teacher of `vit7b.py` in runs/vit7b; another place: --config.init_from=FOLDER. That
teacher is also the first Gram teacher, which is copied anew from the EMA teacher after 10,000,
20,000 and 30,000 steps. The paper begins with an early one, whose patches are better; for that, say
--config.gram.init_from=runs/vit7b/checkpoints/200000.

Steps count from this stage's start: 0 here is 1,000,000 in the reference, which goes on with the
student and the optimizer's moments of its first stage, where this one starts student and moments
afresh from the teacher.

Cost: 200,000 steps of 4,096 images, each also as two crops of 512 px in the Gram teacher. The
training state is 139 GB. Computed: 242,867 TFLOP a step, 34,107 H100-hours at 40 % of the peak.
Expect: it has not been run at full length.
Next: `vit7b_highres.py`.
"""

from ml_collections import ConfigDict

from configs import base, vit7b


def get_config() -> ConfigDict:
  config = vit7b.get_config()
  config.init_from = "runs/vit7b"
  config.gram.update(teacher="own", refresh_every=10_000, refresh_first=10_000, max_refreshes=3)
  config.schedules.update(
    lr=base.constant(3e-5),
    momentum=base.constant(0.999),
    teacher_temp=base.constant(0.07),
    dino_local_weight=base.warmup_cosine(1.0, 1.0, 0.5, cosine_steps=1000),
    gram_weight=base.warmup_cosine(0.0, 0.0, 2.0, cosine_steps=1000))
  config.optim.freeze_last_layer_steps = 0
  config.crops.update(gram_sizes=(512,), gram_distortions=False)
  config.health.reference_at = 0
  config.train.update(steps=200_000, remat="full")
  return config
