"""dino.txt on ViT-L/16: a text tower aligned with the frozen backbone (paper, section 5.3).

  python -m dinov3_jax.main --config=configs/dinotxt_vitl16.py --workdir=runs/dinotxt \
      --config.data.source=coco:/data/coco

A file of its own, for little of `configs/base.py` means anything here: the backbone comes as it is,
and what learns are two more blocks on its tokens and the text tower. Learning rate, decay, betas,
warm-up and number of steps are the reference's; its example has batches of 8,192 pairs, the paper
65,536. The paper's pairs are not public; with COCO's captions the recipe has not been run.
"""

from ml_collections import ConfigDict

from configs.base import constant, warmup_cosine


def get_config() -> ConfigDict:
  config = ConfigDict(dict(
    seed=11,
    # Anything that `dinov3_jax.load` takes; `model` names it where the weights do not. Its digest
    # is found out, and kept in the checkpoints.
    backbone=dict(weights="lvd1689m", model="vitl16", digest=""),
    embedding=2048,  # of the space that images and captions share; half of it is for patches
    vision_head=dict(depth=2, ffn_ratio=4.0, layerscale=1e-5, drop_path=0.3),
    text=dict(vocabulary=49408, context=77, width=1280, depth=24, num_heads=20, ffn_ratio=4.0),
    logit_scale=dict(start=1 / 0.07, highest=100.0),
    # Keeps the similarities between an image's patches those that the backbone's have.
    gram=dict(weight=0.0, normalized=True),
    schedules=dict(lr=warmup_cosine(0.0, 7e-4, 0.0, warmup_steps=2000),
                   weight_decay=constant(1e-4)),
    optim=dict(b1=0.9, b2=0.99),
    # Mean and deviation are set to the backbone's own when a run starts.
    images=dict(size=224, scale=(0.08, 1.0), horizontal_flip=True, mean=(0.485, 0.456, 0.406),
                std=(0.229, 0.224, 0.225)),
    # The backbone's features of so many fixed views of each image are computed once and kept in a
    # folder ("": the folder of caches); 0: each step computes those of new views.
    features=dict(views=0, folder=""),
    data=dict(
      # A folder of images with .txt files or captions.jsonl | coco:FOLDER | openmoji
      source="coco:/data/coco",
      workers=8,  # processes; 0 decodes in threads of this one
      max_damaged=0.01,  # share of unreadable images that stops the run
      background="",
      depth="high_byte",
      max_pixels=2**28,
      big_pixels=2**26,
    ),
    # In `micro_batches` parts, one after the other, each device's pairs go through the trained
    # networks; all are compared with all, so that the update is that of the whole batch.
    train=dict(steps=50_000, batch_size=65_536, micro_batches=1, dtype="bfloat16", remat="full",
               max_skipped_steps=2),
    mesh=dict(data=-1, fsdp=1, tensor=1),  # -1: all the devices that are left
    log_every=10,
    checkpoint=dict(every=2500, minutes=30.0, keep=3, keep_every=10_000, verify=True,
                    on_error="continue"),
    evals=dict(
      every=2500,  # steps between measurements of retrieval, and of zero-shot accuracy
      images=5000,  # held-out ones, at most
      best="",  # a metric, such as "image_to_text_10", whose best checkpoint is kept; "": none
      # What is said of a class, "{}" its name, for zero-shot accuracy; () takes CLIP's 80 ways.
      templates=(),
    ),
  ))
  return config.lock()
