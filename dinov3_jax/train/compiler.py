"""What the compiler is asked for, in one place, with the reason for each.

The options travel with the training step's `jax.jit`, so that they hold however a run is launched,
and when it is compiled ahead of time. They are about one thing: that parameters of the next block
are on their way, and gradients of the last, while this one computes. A TPU's compiler heeds them at
its usual effort: with JAX_EXEC_TIME_OPTIMIZATION_EFFORT at -1, hardly anything overlaps.
"""

import os
import re
from pathlib import Path

import jax

# By kind of device, or else by platform, as JAX names both.
OPTIONS = {
  "tpu": {
    # A gather is started early and awaited late.
    "xla_enable_async_all_gather": True,
    # SparseCores carry gathers out, ...
    "xla_tpu_enable_sparse_core_collective_offload_all_gather": True,
    "xla_tpu_enable_all_gather_offload_tracing": True,
    # ... also those along two or three axes of the torus, which on v5p are left to the core
    # otherwise, ...
    "xla_tpu_enable_sparse_core_collective_offload_2d_all_gather": True,
    "xla_tpu_enable_sparse_core_collective_offload_3d_all_gather": True,
    # ... and scatters.
    "xla_tpu_enable_sparse_core_collective_offload_reduce_scatter": True,
    "xla_tpu_enable_reduce_scatter_offload_tracing": True,
    # No fusions of products with parts of a gather: libtpu 0.0.50 refuses them on all chips but
    # v5e, with the warning that results may be wrong or a program may hang.
    "xla_tpu_enable_async_collective_fusion_fuse_all_gather": False,
  },
  "TPU v5 lite": {  # v5e, which has no SparseCores
    "xla_enable_async_all_gather": True,
    # What computes meanwhile is put into one fusion with what sends: gathers are taken in, ...
    "xla_tpu_enable_async_collective_fusion": True,
    "xla_tpu_enable_async_collective_fusion_fuse_all_gather": True,
    # ... over as many operations as a gather lasts, ...
    "xla_tpu_enable_async_collective_fusion_multiple_steps": True,
    # ... on the same core.
    "xla_tpu_overlap_compute_collective_tc": True,
  },
  "gpu": {
    # Schedules by estimated latencies, so that collectives start early and are awaited late.
    "xla_gpu_enable_latency_hiding_scheduler": True,
    # Gathers the parameters of a loop's next round, and reduces the gradients of its last.
    "xla_gpu_enable_pipelined_all_gather": True,
    "xla_gpu_enable_pipelined_reduce_scatter": True,
    "xla_gpu_enable_pipelined_all_reduce": True,
    # Two rounds of the loop over blocks in one, so that a buffer fills while the other is read.
    "xla_gpu_enable_while_loop_double_buffering": True,
  },
}


def keep_programs():
  """Keeps compiled programs for the next start, in `~/.cache/dinov3_jax`, unless the environment or
  the caller has chosen a place."""
  if jax.config.jax_compilation_cache_dir is None and "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser()
    jax.config.update("jax_compilation_cache_dir", str(cache / "dinov3_jax" / "xla"))


def options(device: jax.Device) -> dict[str, str | bool]:
  """The options of `jax.jit` for a device, or one of a topology; none for platforms not listed."""
  return dict(OPTIONS.get(device.device_kind, OPTIONS.get(device.platform, {})))


def is_too_large(error: Exception) -> bool:
  """Whether a device's memory does not suffice."""
  return "RESOURCE_EXHAUSTED" in str(error)


def explain(error: Exception) -> str:
  """What the compiler or a device says against a step, in one line."""
  if not is_too_large(error):
    return f"the compiler refuses the step: {reason(error)}"
  size = r"\(([\d.]+)([KMGT])\)"
  numbers = re.search(f"{size} exceeds available HBM {size}", str(error))
  what = reason(error)
  if numbers:
    what = "beside its arguments it takes {} {}iB, of {} {}iB".format(*numbers.groups())
  return (f"the step does not fit into a device's memory: {what}; take more devices for "
          "mesh.fsdp, train.remat='full', more train.prototype_chunks, or a smaller batch")


def reason(error: Exception) -> str:
  """The first line of an error."""
  return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
