"""A data set of TensorFlow Datasets."""

import hashlib
import logging
import os
from collections.abc import Iterator

from dinov3_jax.data.decode import DamagedImage, Decoder, decode
from dinov3_jax.data.sources.marks import NONE, Mark
from dinov3_jax.data.sources.notes import pixel_notes, spread
from dinov3_jax.data.sources.splits import HELD_OUT, SPLITS

log = logging.getLogger(__name__)

_told = set()  # the data sets that this process has described


class TfdsSource:
  """A TensorFlow Datasets set of images, read without TensorFlow.

  It must have been prepared in the array_record format. val is its `validation` split, or the last
  5 % of train where there is none. `own_splits` are those of train, val and test that it has.
  """

  labels = None
  fixed = True  # the images of a version stay what they are, and names take reading records

  def __init__(self, name: str, split: str, decoder: Decoder = decode):
    try:
      import tensorflow_datasets as tfds
    except ImportError as error:
      raise ValueError(f"tfds:{name} needs a package that is missing ({error.name}); "
                       "pip install tensorflow-datasets array_record") from error
    self.set, self._decoder = name, decoder
    try:
      # TFDS itself reads this variable once, when it is imported.
      builder = tfds.builder(name, data_dir=os.environ.get("TFDS_DATA_DIR"),
                             file_format="array_record")
      sizes = {key: info.num_examples for key, info in builder.info.splits.items()}
    except Exception as error:
      raise ValueError(f"tfds:{name} cannot be opened: {_first_line(error)}") from error
    if not sizes:
      raise ValueError(
        f"tfds:{name} is not prepared in {builder.data_dir}; run `tfds build {name} "
        "--file_format=array_record` and set TFDS_DATA_DIR if it lies elsewhere")
    own_val = "validation" in sizes
    self.own_splits = {"val" if key == "validation" else key for key in sizes} & {*SPLITS}
    spans = {
      "train": "train" if own_val else f"train[:{100 - HELD_OUT}%]",
      "val": "validation" if own_val else f"train[{100 - HELD_OUT}%:]",
      "test": "test",
      "all": "+".join(sizes),
    }
    self.span = spans[split]
    if self.span.split("[")[0] not in (*sizes, spans["all"]):
      raise ValueError(f"tfds:{name} has no split {split!r}; it has {', '.join(sizes)}")
    features = builder.info.features
    self._image = next((key for key, feature in features.items()
                        if isinstance(feature, tfds.features.Image)), None)
    if self._image is None:
      raise ValueError(f"tfds:{name} has no feature that is an image; it has {', '.join(features)}")
    has_label = "label" in features and isinstance(features["label"], tfds.features.ClassLabel)
    self._label = "label" if has_label else None
    self._file_name = "file_name" if "file_name" in features else None
    self.classes = list(features["label"].names) if self._label else None
    self._mark = _mark(str(builder.data_dir))
    self._data = builder.as_data_source(
      split=self.span, decoders={self._image: tfds.decode.SkipDecoding()})

    if name not in _told:
      _told.add(name)
      for note in pixel_notes(self._samples(), decoder):
        log.warning("tfds:%s: %s", name, note)

  def _samples(self) -> Iterator[bytes]:
    for i in spread(len(self)):
      try:
        yield bytes(self._data[i][self._image])
      except Exception:  # it is named when its turn comes
        continue

  def __len__(self) -> int:
    return len(self._data)

  def _record(self, index: int) -> tuple[dict, str]:
    """What is stored of an image, not decoded, and its name."""
    name = f"{self.set}/{self.span}/{index}"
    try:
      record = self._data[int(index)]
    except Exception as error:
      raise DamagedImage(name, _first_line(error)) from error
    if self._file_name:
      file = record[self._file_name]
      name = file.decode() if isinstance(file, bytes) else str(file)
    return record, name

  def name(self, index: int) -> str:
    """The name of an image: that of its file, which takes reading its record, or its number."""
    try:
      return self._record(index)[1] if self._file_name else f"{self.set}/{self.span}/{index}"
    except DamagedImage as error:
      return error.name

  def encoded(self, index: int) -> bytes:
    """The bytes of an image as they are stored."""
    return bytes(self._record(index)[0][self._image])

  def label(self, index: int) -> int:
    """The label of an image, -1 without one; it takes reading its record."""
    return int(self._record(index)[0][self._label]) if self._label else -1

  def mark(self, index: int) -> Mark:
    """What tells whether any file of the set has changed."""
    return self._mark

  def __getitem__(self, index: int) -> dict:
    record, name = self._record(index)
    label = int(record[self._label]) if self._label else -1
    return {"image": self._decoder(bytes(record[self._image]), name), "label": label, "name": name}


def _mark(folder: str) -> Mark:
  """Of a prepared set, the bytes of its files, and what tells their sizes and times from others."""
  try:
    with os.scandir(folder) as entries:
      found = sorted((entry.name, entry.stat().st_size, entry.stat().st_mtime_ns)
                     for entry in entries if entry.is_file())
  except OSError:  # it is no folder of this machine
    return NONE
  return sum(size for _, size, _ in found), hashlib.sha256(repr(found).encode()).hexdigest()


def _first_line(error: Exception) -> str:
  return (str(error).strip() or type(error).__name__).splitlines()[0]
