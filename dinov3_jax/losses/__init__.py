"""The losses of DINOv3, as pure functions of arrays."""

from dinov3_jax.losses.dino import dino_loss
from dinov3_jax.losses.gram import bicubic_downsample, gram_loss
from dinov3_jax.losses.ibot import ibot_loss
from dinov3_jax.losses.koleo import koleo_loss
from dinov3_jax.losses.prototypes import prototype_cross_entropy, sinkhorn_scales_from_bottleneck
from dinov3_jax.losses.sinkhorn import sinkhorn, sinkhorn_log_scales

__all__ = ["bicubic_downsample", "dino_loss", "gram_loss", "ibot_loss", "koleo_loss",
           "prototype_cross_entropy", "sinkhorn", "sinkhorn_log_scales",
           "sinkhorn_scales_from_bottleneck"]
