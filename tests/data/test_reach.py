"""What counts as damaged, and what cannot be reached."""

import errno
import shutil

import pytest

from dinov3_jax.data.decode import DamagedImage
from dinov3_jax.data.reach import VANISHED, Reach


def failed(cause) -> DamagedImage:
  error = DamagedImage("x.png", getattr(cause, "strerror", cause))
  error.__cause__ = cause
  return error


def missing(path) -> DamagedImage:
  with pytest.raises(OSError) as raised:
    path.read_bytes()
  return failed(raised.value)


def test_a_file_that_is_missing_among_others_is_alone_at_fault(tmp_path):
  (tmp_path / "a").mkdir()
  (tmp_path / "a" / "other.png").touch()
  reach, error = Reach(), missing(tmp_path / "a" / "1.png")
  reach(error)
  for entry in ("empty", "away"):
    if entry == "empty":
      (tmp_path / "a" / "other.png").unlink()
    else:
      shutil.rmtree(tmp_path / "a")
    with pytest.raises(OSError, match=r"^x.png cannot be reached \(No such file or directory\), "
                       "its folder is away or empty: see that the images are there"):
      reach(error)


def test_many_in_a_row_cannot_all_be_at_fault():
  reach, broken = Reach(), failed(OSError(errno.EIO, "Input/output error"))
  for _ in range(2):
    for _ in range(VANISHED - 1):
      reach(broken)
    reach(None)
  for _ in range(VANISHED - 1):
    reach(broken)
  with pytest.raises(OSError, match=f"nor can the {VANISHED - 1} before it"):
    reach(broken)


def test_damaged_images_are_none_of_its_business():
  reach = Reach()
  for _ in range(2 * VANISHED):
    reach(failed(ValueError("no image")))
    reach(failed(OSError("truncated")))
    reach(failed(PermissionError(errno.EACCES, "Permission denied", "/nowhere/x")))
    reach(DamagedImage("x.png", "no cause"))
