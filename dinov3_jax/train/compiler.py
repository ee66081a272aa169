"""What the compiler is asked for, in one place, with the reason for each.

The options travel with the training step's `jax.jit`, so that they hold however a run is launched,
and when it is compiled ahead of time. All but the last of each platform are about one thing: that
parameters of the next block are on their way, and gradients of the last, while this one computes.
"""

OPTIONS = {
  "tpu": {},
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


def options(platform: str) -> dict[str, str | bool]:
  """The options of `jax.jit` for a platform as JAX names it; none for those not listed."""
  return dict(OPTIONS.get(platform, {}))
