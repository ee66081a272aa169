"""Any source as ArrayRecord shards: one file for thousands of images, each read on its own.

```
train-00000-of-00012.array_record        `tf.train.Example`s with image, label and file_name
train-00000-of-00012.array_record.json   names, labels, classes and the split, for the index
pack.json                                what was packed how, and what is done
SHA256SUMS                               of all shards; `sha256sum -c SHA256SUMS` checks them
```
"""

import dataclasses
import functools
import hashlib
import io
import json
import multiprocessing
import os
import pathlib
import time
from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image

from dinov3_jax.data.decode import DamagedImage, decode, deep, open_image
from dinov3_jax.data.header import held
from dinov3_jax.data.lock import FolderLock
from dinov3_jax.data.reach import Reach
from dinov3_jax.data.resizing import resize
from dinov3_jax.data.sources import SPLITS, Source, open_source
from dinov3_jax.data.sources.array_record import BESIDE
from dinov3_jax.data.sources.example import serialize
from dinov3_jax.data.sources.marks import check_marks, check_names, digest, mark
from dinov3_jax.data.sources.notes import spread
from dinov3_jax.data.walk import printable
from dinov3_jax.data.worker import start_worker

STATE, SUMS = "pack.json", "SHA256SUMS"
OPTIONS = "group_size:1,uncompressed"  # records are read one by one, and images are packed already


@dataclasses.dataclass(frozen=True)
class Encoding:
  """What becomes of an image.

  Attributes:
    shorter: side to which larger images are shrunk, pixels (bicubic); 0 leaves all as they are.
    quality: of the JPEG that an image becomes where it is shrunk; it also makes JPEGs of others if
      `all` is set and that is smaller.
    all: see `quality`.

  Images of more than 8 bits, with transparency or with more than four channels are always carried
  as they are.
  """

  shorter: int = 0
  quality: int = 90
  all: bool = False

  def __post_init__(self):
    if self.shorter < 0 or not 1 <= self.quality <= 100:
      raise ValueError("the shorter side must not be negative, and a quality is from 1 to 100, not "
                       f"{self.shorter} and {self.quality}")

  def __call__(self, data: bytes, name: str) -> bytes:
    """The bytes to store of an encoded image.

    Raises:
      DamagedImage: it must be decoded for that, and cannot be.
    """
    if not (self.shorter or self.all) or held(data).beyond:
      return data
    try:
      with open_image(io.BytesIO(data)) as image:
        size, plain = image.size, not deep(image) and not image.has_transparency_data
    except Exception as error:  # Pillow's decoders raise nearly anything
      raise DamagedImage(name, error) from error
    shrinks = self.shorter and min(size) > self.shorter
    if not plain or not (shrinks or self.all):
      return data
    pixels = decode(data, name)
    if shrinks:
      height, width = pixels.shape[:2]
      least = min(height, width)
      pixels = resize(pixels, round(height * self.shorter / least),
                      round(width * self.shorter / least))
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", quality=self.quality)
    return out.getvalue() if shrinks or len(out.getvalue()) < len(data) else data


@dataclasses.dataclass
class Packed:
  """What `pack` has done: counts, sizes of the images in bytes, milliseconds of CPU that it takes
  to read one, and why some were left out, by name."""

  images: int
  shards: int
  bytes_before: int
  bytes_after: int
  ms_before: float
  ms_after: float
  left_out: dict[str, str]


def pack(spec: str | os.PathLike, out: str | os.PathLike, *, split: str = "all",
         encoding: Encoding | None = None, images_per_shard: int = 5_000, workers: int = 1,
         progress: Callable[[int, int], None] = lambda done, total: None) -> Packed:
  """Writes a source as ArrayRecord shards, or goes on where an earlier call was stopped.

  A shard has its name only when it is whole and on the disk. Reading `out` gives the same images in
  the same order and splits. Shards with images that were damaged, and can be read now, are made
  again.

  Args:
    spec: of the source; see `open_source`.
    out: a folder, new or of the same job.
    split: train, val or test; "all" packs each as shards of its own.
    encoding: what becomes of the images; None leaves them as they are.
    images_per_shard: of which there may be fewer in the last shard of a split.
    workers: processes; 1 packs in this one.
    progress: called with the images that are done, and all.

  Raises:
    ValueError: from `open_source`; a folder of another job, or of other images; a package that is
      missing.
    OSError: the folder cannot be written, or another process packs into it; or images cannot be
      reached, see `Reach`. The same call goes on once they can.
  """
  try:
    import array_record  # noqa: F401
  except ImportError as error:
    raise ValueError("packing needs a package that is missing (array_record); pip install "
                     "'dinov3_jax[array_record]'") from error
  if images_per_shard < 1 or workers < 1:
    raise ValueError("images per shard and workers must be at least 1")
  spec, encoding, out = os.fspath(spec), encoding or Encoding(), pathlib.Path(out).expanduser()
  sources = dict(_open(spec, split))
  job = dict(source=spec, split=split, images_per_shard=images_per_shard,
             encoding=dataclasses.asdict(encoding),
             counts={name: len(source) for name, source in sources.items()})
  with FolderLock(out, "packing"):
    done, tasks = _resume(out, job), []
    for name, source in sources.items():
      count = -(-len(source) // images_per_shard)
      tasks += [(name, i, count) for i in range(count)]
    for task in tasks:
      file, source = _file(*task), sources[task[0]]
      if file in done and not _is_whole(out, file, done[file], spec, source, encoding,
                                        _places(source, images_per_shard, task[1])):
        del done[file]
    todo = [task for task in tasks if _file(*task) not in done]
    total = sum(job["counts"].values())
    made = sum(shard["images"] + len(shard["left_out"]) for shard in done.values())
    progress(made, total)
    write = functools.partial(_write_shard, out, sources, encoding, images_per_shard)
    for name, shard in _each(write, todo, min(workers, max(len(todo), 1))):
      done[name] = shard
      _replace(out / STATE, json.dumps(dict(job=job, shards=dict(sorted(done.items()))),
                                       indent=1).encode())
      made += shard["images"] + len(shard["left_out"])
      progress(made, total)
    shards = [done[_file(*task)] for task in tasks]
    _replace(out / SUMS, "".join(f"{done[name]['sha256']}  {name}\n" for name in sorted(
      done)).encode())
    left_out = {name: why for shard in shards for name, why in shard["left_out"].items()}
  before, after = _decoding(next(iter(sources.values()))), _decoding(open_source(
    str(out), "all" if split == "all" else split))
  return Packed(sum(shard["images"] for shard in shards), len(shards),
                sum(shard["read"] for shard in shards), sum(shard["bytes"] for shard in shards),
                before, after, left_out)


def _open(spec: str, split: str) -> Iterator[tuple[str, Source]]:
  """The splits to pack, by name; of "all", those that there are."""
  if split != "all":
    yield split, open_source(spec, split)
    return
  for name in SPLITS:
    try:
      yield name, open_source(spec, name)
    except ValueError:
      if name == "train":  # without that, nothing is as it should be
        raise


def _resume(out: pathlib.Path, job: dict) -> dict[str, dict]:
  """The shards that are there already, by file."""
  try:
    state = json.loads((out / STATE).read_text())
    former, shards = state["job"], state["shards"]
  except FileNotFoundError:
    return {}
  except (ValueError, KeyError, TypeError) as error:
    raise ValueError(f"{printable(out / STATE)} is damaged: delete the folder, or take another "
                     "--out") from error
  other = [key for key in job if former.get(key) != job[key]]
  if other:
    raise ValueError(f"{printable(out)} has the beginning of another job (its {', '.join(other)} "
                     "differ): delete it, or take another --out")
  return {name: shard for name, shard in shards.items()
          if (out / name).exists() and (out / name).stat().st_size == shard["file_bytes"]}


def _is_whole(out: pathlib.Path, file: str, shard: dict, spec: str, source: Source,
              encoding: Encoding, places: range) -> bool:
  """Whether a shard that is there has all that the source has in its places.

  Raises:
    ValueError: these are other images than those that were packed.
  """
  try:
    names = json.loads((out / (file + BESIDE)).read_text(errors="surrogateescape"))["names"]
  except (FileNotFoundError, ValueError, KeyError):
    return False
  if len(names) != shard["images"]:  # it was being made again
    return False
  anew = f"delete {printable(out)}, or take another --out"
  packed = check_names(source, places, names, shard["left_out"], spec, anew)
  check_marks(source, packed, shard.get("marks"), spec, anew)  # the first version kept no marks
  reach = Reach()
  return not any(_is_readable(source, i, encoding, reach)
                 for i in sorted(set(places) - set(packed)))


def _is_readable(source: Source, index: int, encoding: Encoding, reach: Reach) -> bool:
  try:
    encoding(source.encoded(index), source.name(index))
  except DamagedImage as error:
    reach(error)
    return False
  return True


def _places(source: Source, images_per_shard: int, number: int) -> range:
  """Where in the source the images of a shard are."""
  start = number * images_per_shard
  return range(start, min(start + images_per_shard, len(source)))


def _file(split: str, number: int, count: int) -> str:
  return f"{split}-{number:05}-of-{count:05}.array_record"


def _each(write: Callable, tasks: list[tuple], workers: int) -> Iterator[tuple[str, dict]]:
  if workers == 1:
    yield from map(write, tasks)
    return
  with multiprocessing.get_context("spawn").Pool(workers, start_worker) as pool:
    yield from pool.imap_unordered(write, tasks)


def _write_shard(out: pathlib.Path, sources: dict[str, Source], encoding: Encoding,
                 images_per_shard: int, task: tuple[str, int, int]) -> tuple[str, dict]:
  """Writes one shard; returns its file and what is known of it."""
  from array_record.python.array_record_module import ArrayRecordWriter
  name, source = _file(*task), sources[task[0]]
  new = out / f"{name}.new"
  names, labels, marks, left_out, read, stored = [], [], [], {}, 0, 0
  writer = ArrayRecordWriter(str(new), OPTIONS)
  reach = Reach()
  for i in _places(source, images_per_shard, task[1]):
    image, known = source.name(i), mark(source, i)  # before: a change must be noticed later
    try:
      data = source.encoded(i)
      kept = encoding(data, image)
    except DamagedImage as error:
      reach(error)
      left_out[image] = error.reason
      continue
    reach(None)
    label = _label(source, i)
    writer.write(serialize(dict(image=kept, label=label, file_name=image.encode())))
    names.append(image)
    marks.append(known)
    labels.append(label if label >= 0 else None)
    read, stored = read + len(data), stored + len(kept)
  writer.close()
  notes = dict(names=names, labels=labels, classes=source.classes, split=task[0])
  _replace(out / (name + BESIDE), json.dumps(notes).encode())
  with new.open("r+b") as file:
    checksum = hashlib.file_digest(file, "sha256").hexdigest()
    os.fsync(file.fileno())
  size = new.stat().st_size
  new.replace(out / name)
  return name, dict(sha256=checksum, images=len(names), file_bytes=size, bytes=stored, read=read,
                    left_out=left_out, marks=digest(marks))


def _label(source: Source, index: int) -> int:
  if source.labels is not None:
    return int(source.labels[index])
  return source.label(index) if hasattr(source, "label") else -1


def _replace(path: pathlib.Path, data: bytes):
  """Writes a file that is whole or not there."""
  new = path.with_name(path.name + ".new")
  with new.open("wb") as file:
    file.write(data)
    file.flush()
    os.fsync(file.fileno())
  new.replace(path)


def _decoding(source: Source) -> float:
  """Milliseconds of CPU that reading and decoding an image takes: the mean of a few."""
  seconds = []
  for i in spread(len(source)):
    began = time.process_time()
    try:
      source[i]
    except DamagedImage:
      continue
    seconds.append(time.process_time() - began)
  return 1e3 * float(np.mean(seconds)) if seconds else float("nan")
