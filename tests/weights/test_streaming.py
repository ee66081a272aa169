"""How much host memory loading takes, measured in a process of its own."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

from dinov3_jax.models.variants import build
from dinov3_jax.weights import huggingface, naming

SETTINGS = dict(width=512, depth=20, num_heads=8, storage_tokens=4, mask_k_bias=True)
BLOCKS_IN_A_FILE = 5
# The first load warms up what stays: code, compiled programs, the allocator.
MEASURE = """
import ctypes, gc, json, pathlib, re, sys
import jax
from flax import nnx
import dinov3_jax

def status(key):
  text = pathlib.Path("/proc/self/status").read_text()
  return 1024 * int(re.search(key + r":\\s+(\\d+)", text)[1])

model = dinov3_jax.load(None, sys.argv[1])
params = sum(x.nbytes for x in jax.tree.leaves(nnx.state(model)))
del model
gc.collect()
ctypes.CDLL("libc.so.6").malloc_trim(0)
pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
before = status("VmRSS")
model = dinov3_jax.load(None, sys.argv[1])
print(json.dumps(dict(params=params, peak=status("VmHWM") - before,
                      after=status("VmRSS") - before)))
"""


def write(folder):
  """A random checkpoint in several files; returns the size of the largest."""
  shapes = nnx.to_pure_dict(nnx.state(nnx.eval_shape(
      lambda: build(SETTINGS, rngs=nnx.Rngs(0)))))
  rng, contents = np.random.default_rng(0), {}
  for entry in naming.entries(shapes, "huggingface", mask_k_bias=True):
    layer = entry.name.split(".")[1] if entry.name.startswith("layer.") else "0"
    file = f"model-{int(layer) // BLOCKS_IN_A_FILE:05}.safetensors"
    contents.setdefault(file, {})[entry.name] = entry.theirs
  for file, arrays in contents.items():
    save_file({name: rng.random(shape, "f4") for name, shape in arrays.items()}, folder / file)
  index = {name: file for file, arrays in contents.items() for name in arrays}
  (folder / "model.safetensors.index.json").write_text(json.dumps(dict(weight_map=index)))
  (folder / "config.json").write_text(json.dumps(huggingface.config(SETTINGS)))
  return max((folder / file).stat().st_size for file in contents)


@pytest.mark.slow
@pytest.mark.skipif(not pathlib.Path("/proc/self/clear_refs").exists(), reason="needs Linux")
def test_the_peak_is_what_stays_and_one_file(tmp_path):
  largest = write(tmp_path)
  # malloc gives back at once what is freed, so that the measure is of what is in use.
  environment = os.environ | dict(MALLOC_MMAP_THRESHOLD_="100000", JAX_PLATFORMS="cpu")
  environment.pop("XLA_FLAGS", None)
  output = subprocess.run([sys.executable, "-c", MEASURE, tmp_path], capture_output=True, text=True,
                          check=True, env=environment).stdout
  measured = json.loads(output)
  assert largest < measured["params"] / 3.5
  assert measured["after"] < 1.05 * measured["params"]
  assert measured["peak"] < measured["params"] + 1.3 * largest, measured
