# ---
# jupyter:
#   jupytext:
#     cell_metadata_filter: tags
#     notebook_metadata_filter: kernelspec,jupytext
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Adapt a backbone to your own images
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/dinov3_jax/blob/main/notebooks/adapt.ipynb)
#
# Continued pretraining on a folder, without labels and without forgetting: first new heads learn,
# then the backbone, and a frozen copy of the start holds what it knew.

# %%
import importlib.util, os, shutil, subprocess, sys

if importlib.util.find_spec("dinov3_jax") is None:  # on Colab; elsewhere you have installed it
  tpu = os.path.exists("/dev/accel0") or os.path.exists("/dev/vfio/0")
  chip = "tpu," if tpu else "cuda12," if shutil.which("nvidia-smi") else ""
  package = f"dinov3_jax[{chip}quickstart,notebooks] @ git+https://github.com/OWNER/dinov3_jax"
  subprocess.run([sys.executable, "-m", "pip", "install", "-q", package], check=True)

# %% [markdown]
# As it stands, this takes the small network of the notebook *train* (a shorter training makes one if
# there is none) to negatives of its drawings. For your own images, put them into `FOLDER`, nested as
# you like; with folders `train/CLASS` and `val/CLASS` the accuracy is measured, too. For a released
# backbone, accept Meta's licence on the Hugging Face hub, log in with `hf auth login`, and take
# `WEIGHTS = "facebook/dinov3-vits16-pretrain-lvd1689m"` and `SETTINGS = {}`.

# %% tags=["parameters"]
WEIGHTS = "runs/quickstart"
FOLDER = "images"
WORKDIR = "runs/adapted"
# Of the training of the small network, if there must be one.
FIRST = {"train.steps": 200, "schedules.teacher_temp.warmup_steps": 200}
SETTINGS = {  # the small network's images are small
  "crops.global_sizes": (32,), "crops.local_sizes": (24,), "crops.locals": 2,
  "crops.color_strength": 0.0, "evals.image_size": 32, "evals.picture_size": 96,
  "data.workers": 0, "train.batch_size": 64, "train.steps": 300, "evals.every": 100,
  "optim.freeze_backbone_steps": 100, "optim.ramp_backbone_steps": 100, "koleo.group": 8,
  "schedules.momentum.warmup_steps": 200, "schedules.teacher_temp.warmup_steps": 200}

# %%
import dinov3_jax, jax

if WEIGHTS == "runs/quickstart" and not os.path.exists(WEIGHTS):
  dinov3_jax.train("quickstart", WEIGHTS, {"koleo.group": 64 // jax.device_count()} | FIRST)

# %%
from dinov3_jax.data.sources import open_source
from PIL import Image

if not os.path.isdir(FOLDER):
  for side in ("train", "val"):
    drawings = open_source("openmoji:base", side)
    for i in (drawings.labels >= 0).nonzero()[0]:
      place = os.path.join(FOLDER, side, str(drawings.labels[i]))
      os.makedirs(place, exist_ok=True)
      Image.fromarray(255 - drawings[i]["image"]).save(os.path.join(place, f"{i}.png"))

# %%
state = dinov3_jax.train(f"adapt:{WEIGHTS}", WORKDIR, {"data.source": FOLDER} | SETTINGS)

# %% [markdown]
# Before and after: the accuracy of the nearest neighbours, for folders that have classes. On the
# negatives it stayed at 54.3 %: so few steps on so few drawings neither add anything nor lose it.

# %%
if os.path.isdir(os.path.join(FOLDER, "val")):
  size = SETTINGS.get("evals.image_size", 224)
  for weights in (WEIGHTS, WORKDIR):
    figures = dinov3_jax.evaluate("knn", weights, FOLDER, size=size)["knn"].figures
    print(f"{weights}: {figures['top-1, k = 20']:.1f} %")

# %% [markdown]
# The newest picture of held-out images and their patches; the backbone, for use elsewhere, is
# `dinov3_jax.load(None, WORKDIR)`.

# %%
import pathlib

Image.open(sorted(pathlib.Path(WORKDIR, "pictures").iterdir())[-1])
