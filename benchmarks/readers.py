"""Microseconds of CPU to read one image at random from each kind of source, and seconds to open.

  nice python benchmarks/readers.py [--images 2000] [--tars 1000]

Images are JPEGs of 500 x 375, of enlarged noise, 34 kB each. Opening is timed for that many tars
of a tenth as many images each, and for an index of two million images; memory is that of the index,
which is mapped and shared by all processes.
"""

import argparse
import io
import os
import pathlib
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


def opening(spec: str) -> tuple[float, float]:
  seconds = []
  for _ in range(2):
    began = time.perf_counter()
    open_source(spec, "all")
    seconds.append(time.perf_counter() - began)
  return tuple(seconds)


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--images", type=int, default=2000)
  parser.add_argument("--tars", type=int, default=1000)
  args = parser.parse_args()
  with tempfile.TemporaryDirectory() as root:
    os.environ["DINOV3_JAX_CACHE"] = f"{root}/cache"
    root = pathlib.Path(root)
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    for kind, spec in write(root, args.images).items():
      source = open_source(spec, "all")
      order = np.random.default_rng(1).permutation(len(source))
      line = f"| {kind} | {read(source, order):.1f} |"
      if getattr(source, "blocks", None) is not None:
        shuffled = BlockShuffle(source.blocks, 0)
        order = [shuffled(0, n) for n in range(len(source))]
        line += f" {read(source, order):.1f} in its own order"
      print(line)
    (root / "tars").mkdir()
    data = picture(np.random.default_rng(0))[:500]
    for shard in range(args.tars):
      with tarfile.open(root / "tars" / f"{shard:05}.tar", "w") as tar:
        for i in range(args.images // 10):
          add(tar, f"{i % 10}/{shard:05}-{i:06}.jpg", data)
    first, second = opening(str(root / "tars"))
    print(f"{args.tars:,} tars with {args.tars * args.images // 10:,} images: {first:.1f} s, then "
          f"{second:.2f} s")
    (root / "many").write_bytes(b"x")
    scan = lambda path: Found([Entry(f"{i % 1000:04}/{i:08}.jpg", i, 9) for i in range(2_000_000)])
    seconds = []
    for _ in range(2):
      began = time.perf_counter()
      index = open_index("many", [str(root / "many")], scan)
      seconds.append(time.perf_counter() - began)
    print(f"2,000,000 images: {seconds[0]:.1f} s, then {seconds[1]:.3f} s; the index takes "
          f"{index.nbytes / 1e6:.0f} MB; load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
  main()
