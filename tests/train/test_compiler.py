import types

import pytest

from dinov3_jax.train import compiler
from tests.chips import run_for_tpus


@pytest.mark.parametrize("text, said", [
  ("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 265.82G of 95.74G hbm. "
   "Exceeded hbm capacity by 170.08G.\n\nTotal hbm usage >= 266G", "265.82G of 95.74G"),
  ("RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries "
   "(32.08G) exceeds available HBM (31.25G).",
   "beside its arguments it takes 32.08 GiB, of 31.25 GiB; take more devices for mesh.fsdp"),
  ("INTERNAL: it did not work\nat 0x1\nat 0x2", "the compiler refuses the step: INTERNAL: it did")])
def test_what_the_compiler_says_against_a_step_becomes_one_line(text, said):
  explained = compiler.explain(ValueError(text))
  assert said in explained and "\n" not in explained


def test_a_kind_of_device_has_its_own_options_or_those_of_its_platform():
  device = lambda platform, kind: types.SimpleNamespace(platform=platform, device_kind=kind)
  assert compiler.options(device("cpu", "cpu")) == {}
  assert compiler.options(device("tpu", "TPU v6 lite")) == compiler.OPTIONS["tpu"] != {}
  assert compiler.options(device("tpu", "TPU v5 lite")) == compiler.OPTIONS["TPU v5 lite"] != {}


PROGRAM = """
import re, sys
import jax, numpy as np
from jax import numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from dinov3_jax.aot import topology_devices
from dinov3_jax.train import compiler

def f(matrices, x):
  gather = lambda x, w: (jnp.tanh(x @ jax.lax.all_gather(w, "fsdp", tiled=True)), None)
  return jax.lax.scan(gather, x, matrices)[0]

for name in ("v4:2x2x1", "v5e:2x2", "v5p:2x2x1", "v6e:2x2", "tpu7x:2x2x1"):
  devices = np.array(topology_devices(name))
  mesh = jax.sharding.Mesh(devices, ("fsdp",), axis_types=(AxisType.Auto,))
  cut = dict(matrices=P(None, "fsdp"), x=P("fsdp"))
  shapes = dict(matrices=(8, 1024, 1024), x=(256 * devices.size, 1024))
  loss = lambda matrices, x: jnp.sum(jax.shard_map(
    f, mesh=mesh, in_specs=tuple(cut.values()), out_specs=P("fsdp"), check_vma=False)(matrices, x))
  args = [jax.ShapeDtypeStruct(shapes[key], jnp.bfloat16, sharding=NamedSharding(mesh, cut[key]))
          for key in cut]
  text = jax.jit(jax.grad(loss), compiler_options=compiler.options(devices[0])).lower(
    *args).compile().as_text()
  aside = r"%(all-gather|reduce-scatter)\\S* = .*async_execution_thread=.sparsecore"
  print(name.split(":")[0], *sorted(set(re.findall(aside, text))))
"""


def test_every_generation_of_tpus_takes_its_options():
  """And SparseCores carry out the gathers and scatters of those that have them for it."""
  aside = dict(line.split(" ", 1) if " " in line else (line, "") for line in run_for_tpus(PROGRAM))
  both = "all-gather reduce-scatter"
  assert aside == {"v4": "", "v5e": "", "v5p": both, "v6e": both, "tpu7x": both}
