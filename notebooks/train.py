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
# # Train a DINOv3 from scratch
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/dinov3_jax/blob/main/notebooks/train.ipynb)
#
# A small vision transformer learns from 1,485 drawings, without a label. It takes four minutes on
# two CPU cores, and less on a TPU or a GPU (on Colab: *Runtime, Change runtime type*).

# %%
import importlib.util, os, shutil, subprocess, sys

if importlib.util.find_spec("dinov3_jax") is None:  # on Colab; elsewhere you have installed it
  tpu = os.path.exists("/dev/accel0") or os.path.exists("/dev/vfio/0")
  chip = "tpu," if tpu else "cuda12," if shutil.which("nvidia-smi") else ""
  package = f"dinov3_jax[{chip}quickstart,notebooks] @ git+https://github.com/OWNER/dinov3_jax"
  subprocess.run([sys.executable, "-m", "pip", "install", "-q", package], check=True)

# %% tags=["parameters"]
WORKDIR = "runs/quickstart"  # a folder of Google Drive outlives the machine
SETTINGS = {}  # changes to the recipe, such as {"seed": 1}

# %% [markdown]
# Training takes all devices there are. Interrupt it when you like: the state is saved, and the same
# cell goes on from there.

# %%
import dinov3_jax, jax

devices = jax.device_count()
print(f"{devices} x {jax.devices()[0].device_kind}")
# KoLeo, the loss that spreads the features, compares the images of one device with each other.
SETTINGS = {"koleo.group": 64 // devices} | SETTINGS
state = dinov3_jax.train("quickstart", WORKDIR, SETTINGS)

# %% [markdown]
# What has it learned? The accuracy of a vote among the nearest neighbours, on drawings that it has
# never seen; compared with raw pixels, and with the network before its first step.

# %%
from dinov3_jax.report import report

print(report(WORKDIR))

# %% [markdown]
# Held-out drawings beside the three main directions of their patch features, as colours.

# %%
import pathlib
from PIL import Image

Image.open(sorted(pathlib.Path(WORKDIR, "pictures").iterdir())[-1])

# %% [markdown]
# The trained network, for use elsewhere:

# %%
model = dinov3_jax.load(None, WORKDIR)
print(*dinov3_jax.export(WORKDIR, "safetensors", f"{WORKDIR}/exported-{int(state.step)}"), sep="\n")
