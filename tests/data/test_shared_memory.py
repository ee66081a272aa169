"""Shared memory is measured, and nothing of it is left behind."""

import subprocess
import sys
from multiprocessing import shared_memory as standard

import numpy as np
import pytest
from grain._src.python.ipc import shared_memory_array

from dinov3_jax.data import shared_memory


def test_free(monkeypatch, tmp_path):
  monkeypatch.setattr(shared_memory, "FOLDER", str(tmp_path))
  assert shared_memory.free() > 0
  monkeypatch.setattr(shared_memory, "FOLDER", str(tmp_path / "nowhere"))
  assert shared_memory.free() is None


def test_arrays_are_copied_and_freed():
  values = np.arange(6, dtype=np.int16).reshape(2, 3)
  assert shared_memory.own(values) is values
  name = shared_memory_array.copy_to_shm(values)
  shared = shared_memory_array.open_from_shm(name)
  copy = shared_memory.own(shared)
  assert type(copy) is np.ndarray and copy.dtype == np.int16
  np.testing.assert_array_equal(copy, values)
  with pytest.raises(FileNotFoundError):
    standard.SharedMemory(name.name)
  del shared
  shared_memory.settle()
  np.testing.assert_array_equal(copy, values)


SCRIPT = """
import sys
import numpy as np
from dinov3_jax.data.crops import MultiCrop
from dinov3_jax.data.pipeline import make_pipeline

class Source:
  labels = classes = None
  def __len__(self): return 8
  def __getitem__(self, index):
    return {"image": np.zeros((8, 8, 3), np.uint8), "label": -1, "name": ""}

if __name__ == "__main__":
  pipeline = make_pipeline(Source(), [MultiCrop(32, 16)], [1.0], 4, workers=2)
  batches = [next(pipeline) for _ in range(5)]
  assert all(type(array) is np.ndarray for batch in batches for array in batch.values())
  sys.batches = batches  # outlive the interpreter's clearing of modules
  if sys.argv[1] == "close":
    pipeline.close()
  if sys.argv[1] == "error":
    sys.exit("stopped")
"""


@pytest.mark.parametrize("how", ["close", "error"])
def test_no_shared_memory_is_left(tmp_path, how):
  (tmp_path / "script.py").write_text(SCRIPT)
  done = subprocess.run([sys.executable, tmp_path / "script.py", how], capture_output=True,
                        text=True, timeout=120, check=False)
  assert done.stderr == ("stopped\n" if how == "error" else "")
