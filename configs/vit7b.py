"""ViT-7B/16, first of three stages: pretraining with constant schedules (paper, section 3.2).

  python -m dinov3_jax.main --config=configs/vit7b.py --workdir=runs/vit7b \
    --config.data.source=FOLDER

Cost: 1,000,000 steps of 4,096 images; the reference's settings are for 256 GPUs. The training state
is 112 GB, spread over 64 devices; on fewer, say --config.mesh.fsdp=-1 --config.mesh.data=1. What a
TPU holds and sends in a step stands in benchmarks/aot.md. The reference computes the blocks in
8 bits, this recipe in bfloat16. Computed: 123,972 TFLOP a step, 87,049 H100-hours at 40 % of the
peak.
Expect: it has not been run at full length. The paper's 1.7 billion images are not public.
Next: `vit7b_gram.py`.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
  config = base.get_config()
  config.model.update(
    width=4096, depth=40, num_heads=32, ffn="swiglu", ffn_ratio=3.0, ffn_align=64, qkv_bias=False,
    mask_k_bias=True, norm_eps=1e-5, drop_path=0.4, storage_tokens=4,
    untie_global_and_local_cls_norm=True)
  config.model.rope.rescale = 2.0
  config.dino.update(prototypes=262_144, hidden=8192, bottleneck=512)
  config.ibot.update(prototypes=98_304, hidden=4096, bottleneck=384)
  config.koleo.group = 16
  config.schedules.update(
    lr=base.linear(0.0, 5e-5, 100_000),
    weight_decay=base.constant(0.04),
    momentum=base.constant(0.994),
    teacher_temp=base.linear(0.04, 0.07, 100_000))
  config.optim.update(b2=0.99, clip=30.0, layerwise_decay=0.98, freeze_last_layer_steps=5000)
  config.crops.update(global_sizes=(256,), local_sizes=(112,), horizontal_flip=False)
  config.train.update(steps=1_000_000, batch_size=4096, remat="dots")
  config.mesh.update(data=-1, fsdp=64)
  config.checkpoint.update(every=1000, keep_every=50_000)
  config.health.reference_at = 200_000  # from where on the paper sees dense features fade
  return config
