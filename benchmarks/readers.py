"""Microseconds of CPU to read one image at random from each kind of source, and seconds to open.

  nice python benchmarks/readers.py [--images 2000] [--tars 1000] [--files 2000000]

Images are JPEGs of 500 x 375, of enlarged noise, 34 kB each. Opening is timed for that many tars
of a tenth as many images each, for an index of two million images, and for a folder of as many
empty files; each in a process of its own, twice. Memory is what the process takes more than
before, and of an index what it maps, which all processes share. `--only open` leaves out the rest.
"""

import argparse
import io
import json
import os
import pathlib
import pickle
import resource
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile

import numpy as np
import pyarrow as pa
from PIL import Image
from pyarrow import parquet

from dinov3_jax.data.order import BlockShuffle
from dinov3_jax.data.packing import pack
from dinov3_jax.data.sources import open_source
from dinov3_jax.data.sources.index import Entry, Found, open_index


def picture(rng: np.random.Generator) -> bytes:
  small = Image.fromarray(rng.integers(0, 256, (125, 166, 3), dtype=np.uint8))
  data = io.BytesIO()
  small.resize((500, 375), Image.Resampling.BICUBIC).save(data, "JPEG", quality=60)
  return data.getvalue()


def add(tar: tarfile.TarFile, name: str, data: bytes):
  info = tarfile.TarInfo(name)
  info.size = len(data)
  tar.addfile(info, io.BytesIO(data))


def write(root: pathlib.Path, count: int) -> dict[str, str]:
  """The same images in every kind of source; their specs."""
  rng = np.random.default_rng(0)
  images = {f"{i % 10}/{i:06}.jpg": picture(rng) for i in range(count)}
  folder = root / "folder"
  for name, data in images.items():
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data)
  with tarfile.open(root / "x.tar", "w") as tar, zipfile.ZipFile(root / "x.zip", "w") as archive:
    for name, data in images.items():
      add(tar, name, data)
      archive.writestr(name, data)
  parquet.write_table(pa.table({"image": [{"bytes": data, "path": name} for name, data in
                                          sorted(images.items())]}),
                      root / "x.parquet", row_group_size=100)
  pack(folder, root / "packed", workers=1)
  return {"folder": str(folder), "tar": str(root / "x.tar"), "zip": str(root / "x.zip"),
          "parquet": str(root / "x.parquet"), "ArrayRecord": str(root / "packed")}


def read(source, indices) -> float:
  for i in indices[:20]:
    source.encoded(int(i))
  began = time.process_time()
  for i in indices:
    source.encoded(int(i))
  return 1e6 * (time.process_time() - began) / len(indices)


def opened(spec: str) -> dict[str, float]:
  """What it takes to open a source here: seconds, those of CPU, and MB of memory."""
  before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  began, spent = time.perf_counter(), time.process_time()
  source = open_source(spec, "all")
  return dict(images=len(source), seconds=time.perf_counter() - began,
              cpu=time.process_time() - spent,
              mb=(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e3,
              kept=len(pickle.dumps(source)) / 1e6)


def opening(spec: str) -> str:
  """The same in two processes, one after the other."""
  lines = []
  for _ in range(2):
    done = subprocess.run([sys.executable, __file__, "--open", spec], check=True, text=True,
                          capture_output=True)
    found = json.loads(done.stdout.splitlines()[-1])
    lines.append("{seconds:.2f} s ({cpu:.2f} of CPU), {mb:.0f} MB at most, {kept:.1f} MB to each "
                 "worker".format(**found))
  return f"{found['images']:,} images: {lines[0]}; then {lines[1]}"


def empty_files(root: pathlib.Path, count: int):
  """As many as that, in folders of 2,000."""
  for i in range(count):
    if i % 2000 == 0:
      folder = root / f"{i // 2000:04}"
      folder.mkdir(parents=True)
    os.close(os.open(f"{folder}/{i:08}.jpg", os.O_CREAT | os.O_WRONLY))


def small_tars(root: pathlib.Path, count: int, images: int):
  root.mkdir()
  data = picture(np.random.default_rng(0))[:500]
  for shard in range(count):
    with tarfile.open(root / f"{shard:05}.tar", "w") as tar:
      for i in range(images):
        add(tar, f"{i % 10}/{shard:05}-{i:06}.jpg", data)


def reading(root: pathlib.Path, images: int):
  for kind, spec in write(root, images).items():
    source = open_source(spec, "all")
    order = np.random.default_rng(1).permutation(len(source))
    line = f"| {kind} | {read(source, order):.1f} |"
    if getattr(source, "blocks", None) is not None:
      shuffled = BlockShuffle(source.blocks, 0)
      order = [shuffled(0, n) for n in range(len(source))]
      line += f" {read(source, order):.1f} in its own order"
    print(line, flush=True)


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--images", type=int, default=2000)
  parser.add_argument("--tars", type=int, default=1000)
  parser.add_argument("--files", type=int, default=2_000_000)
  parser.add_argument("--only", choices=["read", "open"])
  parser.add_argument("--open", help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.open:
    print(json.dumps(opened(args.open)))
    return
  with tempfile.TemporaryDirectory() as root:
    os.environ["DINOV3_JAX_CACHE"] = f"{root}/cache"
    root = pathlib.Path(root)
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    if args.only != "open":
      reading(root, args.images)
    if args.only != "read":
      small_tars(root / "tars", args.tars, args.images // 10)
      print(f"{args.tars:,} tars, {opening(str(root / 'tars'))}", flush=True)
      empty_files(root / "many", args.files)
      print(f"folder, {opening(str(root / 'many'))}", flush=True)
      index(root)
    print(f"load {os.getloadavg()[0]:.1f}")


def index(root: pathlib.Path):
  """An index of two million images, without files for them."""
  (root / "one").write_bytes(b"x")
  scan = lambda path: Found([Entry(f"{i % 1000:04}/{i:08}.jpg", i, 9) for i in range(2_000_000)])
  seconds = []
  for _ in range(2):
    began = time.perf_counter()
    made = open_index("many", [str(root / "one")], scan)
    seconds.append(time.perf_counter() - began)
  print(f"an index of 2,000,000 images: {seconds[0]:.1f} s, then {seconds[1]:.3f} s; it takes "
        f"{made.nbytes / 1e6:.0f} MB")


if __name__ == "__main__":
  main()
