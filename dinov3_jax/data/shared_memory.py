"""The shared memory of Grain's workers: how much there is, and that none is left behind."""

import gc
import os

import numpy as np
from grain._src.python.ipc.shared_memory_array import SharedMemoryArray

FOLDER = "/dev/shm"  # where Linux keeps it


def free() -> int | None:
  """The bytes that are left; None where nothing tells."""
  try:
    found = os.statvfs(FOLDER)
  except OSError:
    return None
  return found.f_bavail * found.f_frsize


def own(array: np.ndarray, into: np.ndarray | None = None) -> np.ndarray:
  """An array in memory of this process.

  Where it came through shared memory, that is freed now. Grain would do so once the array is
  garbage, which at the end of a program is too late: Python's resource tracker calls it leaked.

  Args:
    array: any.
    into: of its shape, to be filled and returned; None: the array itself, or a new one.
  """
  shared = isinstance(array, SharedMemoryArray)
  if into is not None:
    into[...] = array
  if not shared:
    return array if into is None else into
  copy = np.array(array, subok=False) if into is None else into
  array.shm.unlink()
  array._unlink_on_del = False
  return copy


def settle() -> None:
  """Waits until the arrays that were dropped have freed their memory, which a thread does."""
  gc.collect()
  if SharedMemoryArray._del_thread_pool:
    SharedMemoryArray._del_thread_pool.apply(int)  # its only thread does what came before, first
