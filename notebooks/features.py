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
# # Features of a frozen DINOv3
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/dinov3_jax/blob/main/notebooks/features.ipynb)
#
# What the patches of an image have in common, which of them are alike, and what a linear classifier
# makes of the features.

# %%
import importlib.util, os, shutil, subprocess, sys

if importlib.util.find_spec("dinov3_jax") is None:  # on Colab; elsewhere you have installed it
  tpu = os.path.exists("/dev/accel0") or os.path.exists("/dev/vfio/0")
  chip = "tpu," if tpu else "cuda12," if shutil.which("nvidia-smi") else ""
  package = f"dinov3_jax[{chip}quickstart,notebooks] @ git+https://github.com/OWNER/dinov3_jax"
  subprocess.run([sys.executable, "-m", "pip", "install", "-q", package], check=True)

# %% [markdown]
# The weights are those of the notebook *train*; where there are none, a shorter training makes some.
# Once you have accepted Meta's licence on the Hugging Face hub, and logged in with `hf auth login`,
# take `WEIGHTS = "facebook/dinov3-vits16-pretrain-lvd1689m"` and `SIZE = 448` instead.

# %% tags=["parameters"]
WEIGHTS = "runs/quickstart"
SIZE = 128  # side of the images, pixels
IMAGES = 9  # that are drawn
# Of the training, if there must be one.
SETTINGS = {"train.steps": 200, "schedules.teacher_temp.warmup_steps": 200}

# %%
import dinov3_jax, jax

if WEIGHTS == "runs/quickstart" and not os.path.exists(WEIGHTS):
  SETTINGS = {"koleo.group": 64 // jax.device_count()} | SETTINGS
  dinov3_jax.train("quickstart", WEIGHTS, SETTINGS)

# %% [markdown]
# Drawings that the training has not seen, with their categories. Any list of paths, arrays or
# Pillow images will do instead.

# %%
from dinov3_jax.data.sources import open_source

drawings = open_source("openmoji:base", "test")
some = range(0, len(drawings), len(drawings) // IMAGES)[:IMAGES]
pictures = [drawings[i]["image"] for i in some]

# %% [markdown]
# **Principal components** of the patches, over all images at once: equal colours are equal
# directions.

# %%
from PIL import Image
from dinov3_jax.evals import pca

patches = dinov3_jax.features(pictures, WEIGHTS, tokens="patches", size=SIZE)[0]["patches"]
colours = [pca.enlarge(x, SIZE, SIZE) for x in pca.pca_rgb(patches)]
Image.fromarray(pca.grid([[pca.enlarge(p / 255, SIZE, SIZE), c] for p, c in zip(pictures, colours)]))

# %% [markdown]
# **Similarity** of every patch to the one in the middle: the brighter, the more.

# %%
middle = patches.shape[1] // 2, patches.shape[2] // 2
maps = [pca.heatmap(pca.similarity_map(x, middle)) for x in patches]
Image.fromarray(pca.grid([[pca.enlarge(p / 255, SIZE, SIZE), pca.enlarge(m, SIZE, SIZE)]
                          for p, m in zip(pictures, maps)]))

# %% [markdown]
# **A linear probe**: logistic regression from the CLS features to ten categories.

# %% tags=["probe"]
from dinov3_jax.evals import logistic

sides = {side: open_source("openmoji:base", side) for side in ("train", "test")}
labelled = {side: [source[i] for i in (source.labels >= 0).nonzero()[0]]
            for side, source in sides.items()}

# %%
cls = {side: dinov3_jax.features([x["image"] for x in items], WEIGHTS)[0]["cls"]
       for side, items in labelled.items()}
probe = logistic.fit(cls["train"], [x["label"] for x in labelled["train"]], C=1.0)
right = (probe.predict(cls["test"]) == [x["label"] for x in labelled["test"]]).mean()
print(f"{right:.1%} of {len(labelled['test'])} unseen drawings, in {len(drawings.classes)} categories")
