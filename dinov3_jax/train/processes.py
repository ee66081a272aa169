"""Several processes that train one model together: how they find each other, and agree."""

import os

import jax
import numpy as np
from jax.experimental import multihost_utils

VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


def join(detect: bool) -> None:
  """Makes this process one of several, if it is; comes before anything asks for devices.

  The variables `JAX_COORDINATOR_ADDRESS` (HOST:PORT of process 0), `JAX_NUM_PROCESSES` and
  `JAX_PROCESS_ID` say so, all three of them; with `detect`, what JAX finds in a TPU pod, on
  GKE, under Slurm or Open MPI.

  Raises:
    ValueError: some of the variables are missing or no numbers, or nothing is found.
  """
  # JAX's own would take SIGTERM, which is ours to handle.
  jax.config.update("jax_enable_preemption_service", False)
  given = [os.environ.get(name) for name in VARIABLES]
  if any(given):
    address, count, index = given
    numbers = all(given) and count.isdigit() and index.isdigit() and int(index) < int(count)
    if not numbers or ":" not in address:
      said = " ".join(f"{name}={value or ''}" for name, value in zip(VARIABLES, given))
      raise ValueError("several processes need HOST:PORT, their number, and this one's from 0 on; "
                       f"the environment says {said}")
    try:
      jax.distributed.initialize(address, int(count), int(index),
                                 cluster_detection_method="deactivate")
    except jax.errors.JaxRuntimeError as error:
      reason = str(error).splitlines()[0]
      raise ValueError(f"the processes cannot meet at {address}: {reason}") from error
  elif detect:
    try:
      jax.distributed.initialize()
    except ValueError as error:
      raise ValueError("--distributed finds no TPU pod, GKE, Slurm or Open MPI: set "
                       f"{', '.join(VARIABLES)}") from error


def greatest(number: int) -> int:
  """The greatest of the numbers that the processes call this with; all must call it."""
  return int(multihost_utils.process_allgather(np.int32(number)).max())
