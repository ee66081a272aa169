"""Frames of videos by the time at which they are shown, and the squares that a probe sees."""

import os
from collections.abc import Sequence

import numpy as np

from dinov3_jax.data.crops import random_window, resize
from dinov3_jax.data.decode import DamagedImage

INSTALL = "reading videos needs PyAV: pip install 'dinov3_jax[video]' (or: pip install av)"
CROP = (0.4, 1.0)  # share of the area that a training clip shows (paper D.6)


def frame_times(path: str | os.PathLike) -> np.ndarray:
  """The times at which the frames of a video are shown, in seconds from the first, ascending.

  Only its packets are read, nothing is decoded.

  Returns:
    float64 [frames].

  Raises:
    DamagedImage: it is no video, or has no frame.
    ModuleNotFoundError: PyAV is not installed.
  """
  times = []
  with _opened(path) as (container, stream):
    for packet in container.demux(stream):
      if packet.size:
        times.append(_seconds(packet, stream))
  return _ascending(path, times)


def read_frames(path: str | os.PathLike, times: Sequence[float]) -> list[np.ndarray]:
  """What a video shows at these times: of each, the last frame that has begun by then.

  The video is decoded from its beginning to the last of these times, so that none of its frames
  depends on where keyframes lie. A file that ends early shows its last frame from there on.

  Args:
    times: seconds from the first frame, ascending.

  Returns:
    uint8 [H, W, 3] each, upright.

  Raises:
    DamagedImage: not a single frame can be decoded.
    ModuleNotFoundError: PyAV is not installed.
  """
  result, last, begin = [], None, None
  with _opened(path) as (container, stream):
    for frame in _decoded(container, stream):
      now = _seconds(frame, stream)
      begin = now if begin is None else begin
      while len(result) < len(times) and times[len(result)] < now - begin - 1e-6 and last:
        result.append(last)
      if len(result) == len(times):
        break
      last = frame
    if last is None:
      raise DamagedImage(os.fspath(path), "no frame of the video can be decoded")
    result += [last] * (len(times) - len(result))
    pictures = {id(frame): _upright(frame) for frame in result}
    return [pictures[id(frame)] for frame in result]


def _upright(frame) -> np.ndarray:
  """Of a decoded frame; telephones store what they turn only when they show it."""
  turns = round((frame.rotation or 0) / 90)
  return np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), turns))


class _opened:
  """A video's container and its first stream of pictures; PyAV's errors become `DamagedImage`."""

  def __init__(self, path):
    self._path = os.fspath(path)

  def __enter__(self):
    try:
      import av
    except ModuleNotFoundError as error:
      raise ModuleNotFoundError(INSTALL) from error
    self._error = av.FFmpegError
    try:
      self._container = av.open(self._path)
    except av.FFmpegError as error:
      raise DamagedImage(self._path, error) from error
    if not self._container.streams.video:
      self._container.close()
      raise DamagedImage(self._path, "it has no stream of pictures")
    stream = self._container.streams.video[0]
    stream.thread_type = "AUTO"
    return self._container, stream

  def __exit__(self, kind, error, trace):
    self._container.close()
    if isinstance(error, self._error):
      raise DamagedImage(self._path, error) from error


def _decoded(container, stream):
  """The frames that can be decoded, up to the first damage."""
  import av
  try:
    yield from container.decode(stream)
  except av.FFmpegError:
    return


def _seconds(item, stream) -> float | None:
  """When a packet or a frame is shown; old containers know the order of decoding alone."""
  stamp = item.pts if item.pts is not None else item.dts
  return None if stamp is None else float(stamp * stream.time_base)


def _ascending(path, times) -> np.ndarray:
  if not times:
    raise DamagedImage(os.fspath(path), "the video has no frames")
  if None in times:
    raise DamagedImage(os.fspath(path), "the video does not say when its frames are shown")
  times = np.sort(times)
  return times - times[0]


def spaced(count: int, frames: int) -> np.ndarray:
  """Places of `frames` of `count` frames: the first, the last, and evenly between them."""
  return np.round(np.linspace(0, count - 1, frames)).astype(int)


def drawn(count: int, frames: int, rng: np.random.Generator) -> np.ndarray:
  """Random places, ascending; each at most once if there are enough."""
  return np.sort(rng.choice(count, frames, replace=count < frames))


def shares(times: np.ndarray) -> np.ndarray:
  """Times from 0 to 1 of the last one, float32."""
  return (times / (times[-1] or 1)).astype(np.float32)


def squares(frame: np.ndarray, size: int, count: int = 1) -> list[np.ndarray]:
  """The largest squares of a frame, uint8 [size, size, 3] each, along its longer side.

  Args:
    frame: uint8 [H, W, 3].
    size: side, pixels.
    count: 1 takes the middle; 3 the beginning, the middle and the end.
  """
  height, width = frame.shape[:2]
  side = min(height, width)
  result = []
  for share in (0.5,) if count == 1 else np.linspace(0, 1, count):
    top, left = round(share * (height - side)), round(share * (width - side))
    result.append(resize(frame[top:top + side, left:left + side], size, size))
  return result


def random_square(frames: Sequence[np.ndarray], size: int, rng: np.random.Generator
                  ) -> list[np.ndarray]:
  """One window of all frames, of 40 to 100 % of their area, resized to a square."""
  top, left, height, width = random_window(*frames[0].shape[:2], CROP, rng)
  return [resize(frame[top:top + height, left:left + width], size, size) for frame in frames]
