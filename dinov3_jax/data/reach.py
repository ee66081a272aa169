"""Tells images that are damaged from images that cannot be reached, as their folder is away."""

import errno
import os

from dinov3_jax.data.decode import DamagedImage

VANISHED = 32  # images in a row that cannot be reached: it is not they that are at fault
UNREACHABLE = {errno.ENOENT, errno.ENOTDIR, errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ENODEV,
               errno.ENXIO, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.EHOSTUNREACH}


class Reach:
  """Watches images as they are read, so that those of a folder that is away do not count as
  damaged: they are all well once it is back."""

  def __init__(self):
    self._row = 0

  def __call__(self, error: DamagedImage | None) -> None:
    """Takes note of the next image.

    Args:
      error: why it could not be read, if so.

    Raises:
      OSError: its folder is away, or it is the last of `VANISHED` images in a row that cannot be
        reached.
    """
    cause = error and error.__cause__
    if not isinstance(cause, OSError) or cause.errno not in UNREACHABLE:
      self._row = 0
      return
    self._row += 1
    away = cause.filename is not None and _is_away(cause.filename)
    if away or self._row == VANISHED:
      which = "its folder is away or empty" if away else f"nor can the {VANISHED - 1} before it"
      raise OSError(f"{error.name} cannot be reached ({error.reason}), {which}: see that the "
                    "images are there, and the same command goes on from here") from error


def _is_away(path: str | bytes) -> bool:
  """Whether the folder of a file is not there, or has nothing in it, as where a disk is not
  mounted; a file that is missing among others is alone at fault."""
  try:
    with os.scandir(os.path.dirname(os.path.abspath(path))) as entries:
      return next(entries, None) is None
  except PermissionError:  # it is there, and its files may be read by their names all the same
    return False
  except OSError:
    return True
