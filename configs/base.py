"""Every setting there is, at the values of the reference's ViT-L/16 recipe on ImageNet-1k.

A recipe calls `get_config()` of this file and states only what differs. The result is locked: a
misspelt key is an error, and a test fails on any key that no code reads.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def constant(value: float) -> dict:
  """A schedule that stays at `value`."""
  return warmup_cosine(value, value, value)


def warmup_cosine(start: float, peak: float, end: float, warmup_steps: int = 0,
                  cosine_steps: int | None = None) -> dict:
  """Linear from `start` to `peak`, half a cosine to `end`, then constant; the learning-rate scaling
  rule multiplies `peak` and `end`. `cosine_steps` of None means: until the last step."""
  return dict(kind="warmup_cosine", start=start, peak=peak, end=end, warmup_steps=warmup_steps,
              cosine_steps=cosine_steps, trunc_extra=0.0)


def cosine(peak: float, end: float, warmup_steps: int = 0, start: float = 0.0,
           trunc_extra: float = 0.0) -> dict:
  """The older family: `peak` is reached on the last warm-up step, `end` only after the last step,
  and the learning-rate scaling rule multiplies `peak` alone."""
  return dict(kind="cosine", start=start, peak=peak, end=end, warmup_steps=warmup_steps,
              cosine_steps=None, trunc_extra=trunc_extra)


def linear(start: float, end: float, steps: int) -> dict:
  """Linear from `start` to `end` over `steps`, then constant."""
  return warmup_cosine(start, end, end, steps, 0)


def convnext(depths: tuple[int, ...], dims: tuple[int, ...], drop_path: float = 0.0,
             layerscale: float = 1e-6, in_channels: int = 3) -> ConfigDict:
  """The section `model` of a ConvNeXt, in place of a ViT's: blocks and widths of its four stages,
  the last block's rate of stochastic depth, and LayerScale's initial value."""
  return ConfigDict(dict(depths=tuple(depths), dims=tuple(dims), drop_path=drop_path,
                         layerscale=layerscale, in_channels=in_channels))


def foreign(callable: str, width: int, patch_size: int, host: bool = False) -> ConfigDict:
  """The section `model` of somebody else's network, in place of a ViT's: a frozen backbone without
  parameters, on which heads are trained; see `dinov3_jax.models.foreign`. The digest of its weights
  is found out, and kept in the checkpoints."""
  return ConfigDict(dict(callable=callable, width=width, patch_size=patch_size, host=host,
                         in_channels=3, digest=""))


def get_config() -> ConfigDict:
  config = ConfigDict(dict(
    seed=0,
    # Weights that start student, teacher and Gram teacher: a run's folder, for its teacher, or
    # anything else that `dinov3_jax.load` takes, such as a file or an id of the Hugging Face hub.
    init_from="",
    init_heads=True,  # with those heads of DINO and iBOT that are there; False: fresh ones
    # A frozen teacher that the student learns from, instead of its own average: a run's folder, or
    # a file of weights with heads. Its digest is found out, and kept in the checkpoints.
    distill=dict(teacher="", digest=""),
    # By name, students that learn from that teacher in one run: the sections that are each one's
    # own (model, dino, ibot, koleo, schedules, optim).
    students={},
    model=dict(
      patch_size=16,
      stem="patch",  # patch | conv: overlapping convolutions, for small models and short trainings
      in_channels=3,
      width=1024,
      depth=24,
      num_heads=16,
      ffn="mlp",  # mlp | swiglu
      ffn_ratio=4.0,
      ffn_align=8,  # SwiGLU rounds its hidden width up to a multiple of this
      qkv_bias=True,
      proj_bias=True,
      ffn_bias=True,
      mask_k_bias=False,
      norm="layernorm",  # layernorm | rmsnorm
      norm_eps=1e-6,
      layerscale=1e-5,  # initial value; 0 leaves LayerScale out
      drop_path=0.3,
      storage_tokens=0,
      # Above 0: of the blocks, low-rank adapters of this rank on attention's qkv and proj alone
      # learn; `load` and `export` fold them into the weights that they adapt.
      adapter_rank=0,
      untie_cls_and_patch_norms=False,
      untie_global_and_local_cls_norm=False,
      rope=dict(
        base=100.0,  # 0: periods run from min_period to max_period instead
        min_period=placeholder(float),
        max_period=placeholder(float),
        normalize="separate",  # separate | max | min
        shift=placeholder(float),
        jitter=placeholder(float),
        rescale=placeholder(float),
        dtype="bfloat16",
      ),
    ),
    dino=dict(weight=1.0, prototypes=65536, hidden=2048, bottleneck=256, layers=3,
              ignore_diagonal=True),
    ibot=dict(weight=1.0, prototypes=65536, hidden=2048, bottleneck=256, layers=3),
    masks=dict(probability=0.5, ratio=(0.1, 0.5), circular_shift=False),
    koleo=dict(weight=0.1, group=64, topk=1),
    # Of 1 - cosine between the CLS features of student and Gram teacher, on global crops.
    cls_preservation=dict(weight=0.0),
    gram=dict(
      teacher="none",  # none | ema: the EMA teacher itself | own: a frozen copy
      init_from="",  # as config.init_from, for the first Gram teacher; "" takes that one
      # For a run that anchors itself: no Gram loss before this step, when the EMA teacher becomes
      # the Gram teacher; the steps of schedules.gram_weight count from it.
      start_at=placeholder(int),
      copy_ema_at=placeholder(int),  # before this step, the EMA teacher becomes the Gram teacher
      refresh_every=0,  # steps between further copies; 0: never
      refresh_first=0,  # no copy before this many steps are done
      max_refreshes=placeholder(int),
      normalized=True,
      image_level=True,
      tokens="all",  # all | masked | unmasked
      negatives="keep",  # keep | remove | remove_teacher_only
      stats=False,  # log the Gram loss of masked and of unmasked tokens, too
    ),
    schedules=dict(
      lr=cosine(1e-3, 1e-6, warmup_steps=12500),
      weight_decay=cosine(0.04, 0.4),
      momentum=cosine(0.992, 1.0),
      teacher_temp=cosine(0.07, 0.07, warmup_steps=37_500, start=0.04),
      dino_local_weight=constant(1.0),
      gram_weight=constant(1.0),
    ),
    optim=dict(
      b1=0.9,
      b2=0.999,
      clip=3.0,  # of the gradient norm, for backbone and each head on its own
      lr_scaling="sqrt_wrt_1024",  # none | sqrt_wrt_1024 | linear_wrt_256
      layerwise_decay=0.9,
      patch_embed_lr_mult=0.2,
      dino_head_wd_mult=1.0,
      freeze_last_layer_steps=1250,
      backbone_lr_mult=1.0,
      freeze_backbone_steps=0,  # in which the heads alone learn; -1: all
      ramp_backbone_steps=0,  # after these, in which the backbone's rate and decay rise from 0
    ),
    crops=dict(
      global_sizes=(224,),  # several: each step draws one entry of all four lists
      local_sizes=(96,),
      gram_sizes=(0,),  # 0: no Gram crops; a Gram teacher of its own then sees the global ones
      size_weights=(1.0,),
      locals=8,
      global_scale=(0.32, 1.0),
      local_scale=(0.05, 0.32),
      horizontal_flip=True,
      color_strength=1.0,  # 0 to 1; less keeps colours, where they tell what is in an image
      share_color_jitter=False,
      locals_from_globals=False,
      gram_distortions=True,
      mean=(0.485, 0.456, 0.406),
      std=(0.229, 0.224, 0.225),
    ),
    data=dict(
      # A folder of images, tars, zips, parquet, ArrayRecord, a list, a bucket, tfds:NAME, openmoji,
      # or a mix.json; see docs/data.md.
      source="tfds:imagenet2012",
      # By name, several sources in its place, drawn by weight: each has a source and, if wanted, a
      # split ("train"), a weight (without any, every image counts as much) and homogeneous=True,
      # for batches from it alone; its weight is the share of these.
      sources={},
      workers=8,  # processes; 0 decodes in threads of this one
      max_damaged=0.01,  # share of unreadable images that stops the run
      background="",  # colour behind transparent pixels ("white"); "": transparency is dropped
      # Of grey values of 16 bits is kept: high_byte | range: of each image's own values | a number
      # of bits as a string, "12" for 12-bit data.
      depth="high_byte",
      max_pixels=2**28,  # an image with more is not read; decoding takes up to 7 bytes a pixel
      big_pixels=2**26,  # images with more are decoded one at a time
      cache_gb=0.0,  # of disk for what is read from buckets (10**9 bytes)
      # Photographs much larger than their crops become smaller while they are decoded; not exact.
      scaled_decoding=False,
      resizer="exact",  # exact: Pillow's | fast: 0.1 to 0.2 levels off; see docs/data.md
      colors="host",  # host | device: jitter, blur and solarization there; see docs/data.md
    ),
    train=dict(
      steps=125_000,
      batch_size=2048,  # images a step, over all devices
      # Parts of a device's images that follow one another: their gradients are averaged, so that
      # larger batches take no more memory. Sinkhorn balances the whole batch; KoLeo's groups must
      # divide a part; each part has its own masks and its own draw of stochastic depth.
      micro_batches=1,
      dtype="bfloat16",  # of the computation; parameters stay float32
      # none | dots: keep matrix products alone | full: keep only each block's input | offload: and
      # that in the host's memory. Parameters of other devices are never kept, but gathered again.
      remat="dots",
      # auto: XLA's attention; on TPUs, from 1,024 tokens on, a kernel that keeps no scores | xla:
      # XLA's at any length | cudnn: NVIDIA's kernel, in bfloat16 or float16. On GPUs auto stays
      # with XLA's until benchmarks/gpu.py has measured that cuDNN's is faster.
      attention="auto",
      # Products of a ViT's blocks: "" in train.dtype | fp8 or int8: in 8 bits, with a scale for
      # each row, on chips that multiply these faster.
      matmul="",
      prototype_chunks=1,  # more: the losses take less memory, and compute their logits twice
      max_skipped_steps=2,  # non-finite steps in a row that are forgiven
    ),
    mesh=dict(data=-1, fsdp=1, tensor=1),  # -1: all the devices that are left
    log_every=10,
    checkpoint=dict(
      every=3750,  # steps
      minutes=30.0,  # and whenever so long has passed; 0: by steps alone
      keep=3,  # the last ones
      keep_every=15_000,  # and those whose step is a multiple of this, of `every` itself; 0: none
      verify=True,  # write a checksum of every array, and hold what is read against it
      on_error="continue",  # continue | stop: when one cannot be written, such as on a full disk
    ),
    health=dict(  # what metrics.jsonl says at every log line beside the losses; see docs/stages.md
      images=256,  # fixed images whose features are looked at; 0: none, and no such figures
      reference_at=12_500,  # gram_drift is from the patch similarities after this step
    ),
    evals=dict(
      every=12_500,
      knn_k=20,
      knn_images=50_000,  # of the training split in the bank, at most
      image_size=224,
      pictures=8,
      picture_size=224,  # of the images in them; larger than in training shows finer patches
      general="",  # a second source, evaluated in the same way under names with `general/` before
      # A metric of these evaluations, such as knn_top1 or general/knn_top1: `checkpoints/best` is
      # the checkpoint with its highest value, and is kept.
      best="",
      # Of `python -m dinov3_jax.evaluate`: "tracking=/data/DAVIS"; "tracking" alone is on small
      # data that are made from OpenMoji.
      tasks=(),
      task_limit=0,  # so many images, videos or pairs of a split; 0: all
    ),
  ))
  return config.lock()
