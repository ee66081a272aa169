"""Parts of files, and the cache of those from buckets."""

import gc
import os
import pickle
from concurrent.futures import ThreadPoolExecutor

import fsspec
import pytest

from dinov3_jax.data.sources import places, ranges
from dinov3_jax.data.sources.ranges import Cache, Ranges

DATA = bytes(range(256)) * 40


@pytest.fixture
def files(tmp_path):
  paths = [str(tmp_path / name) for name in "abc"]
  for i, path in enumerate(paths):
    with open(path, "wb") as file:
      file.write(bytes([i]) + DATA)
  return paths, [places.mark(path) for path in paths]


def test_parts_from_many_threads_and_few_handles(files, monkeypatch):
  monkeypatch.setattr(ranges, "OPEN", 1)
  reader = pickle.loads(pickle.dumps(Ranges(*files)))
  read = lambda i: reader.read(i % 3, i, 50)
  with ThreadPoolExecutor(8) as threads:
    found = list(threads.map(read, range(300)))
  for i, data in enumerate(found):
    assert data == (bytes([i % 3]) + DATA)[i : i + 50]
  assert reader.read(1, 5, -1) == DATA[4:]


def test_a_part_beyond_the_end_and_a_changed_file(files):
  paths, marks = files
  with pytest.raises(OSError, match=r"a ends after 10,241 bytes, within a part"):
    Ranges(paths, marks).read(0, 10_000, 1000)
  os.truncate(paths[1], 100)
  changed = Ranges(paths, marks)
  for _ in range(2):
    with pytest.raises(OSError, match="b has changed since its index was made"):
      changed.read(1, 0, 10)
  os.unlink(paths[2])
  with pytest.raises(FileNotFoundError):
    Ranges(paths, marks).read(2, 0, 10)


def test_what_was_read_from_a_bucket_is_kept(own_cache, monkeypatch):
  fs = fsspec.filesystem("memory")
  fs.pipe("/cached/x", DATA)
  path = "memory://cached/x"
  asked = []
  real = type(fs).cat_file
  monkeypatch.setattr(type(fs), "cat_file",
                      lambda self, *args, **more: asked.append(args) or real(self, *args, **more))
  for cache_gb, expected in ((0.0, 4), (0.001, 2)):
    asked.clear()
    for _ in range(2):  # the second time as another process
      reader = Ranges([path], [places.mark(path)], cache_gb)
      for row, (offset, size) in enumerate(((0, 100), (5000, 77))):
        assert reader.read(0, offset, size, row) == DATA[offset : offset + size]
    assert len(asked) == expected


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts what Linux has open")
def test_few_caches_are_open_at_once(own_cache, files, monkeypatch):
  monkeypatch.setattr(ranges, "OPEN", 5)
  fs = fsspec.filesystem("memory")
  remote = [f"memory://many/{i}" for i in range(12)]
  for i, path in enumerate(remote):
    fs.pipe(path, bytes([i]) + DATA)
  paths = remote + files[0]
  reader = Ranges(paths, [places.mark(path) for path in paths], 0.001)
  looked = []
  real = ranges.Room.taken
  monkeypatch.setattr(ranges.Room, "taken", lambda self: looked.append(0) or real(self))
  before = len(os.listdir("/proc/self/fd"))
  for _ in range(2):
    for i in (*range(15), *reversed(range(15)), 0, 13, 0, 5, 14, 0):
      assert reader.read(i, 0, 50) == (bytes([i if i < 12 else i - 12]) + DATA)[:50]
      assert len(os.listdir("/proc/self/fd")) <= before + 5
    monkeypatch.setattr(type(fs), "cat_file", None)  # the second time, all is in the caches
  assert len(looked) == 1  # not at each opening, which is slow where files are many
  with ThreadPoolExecutor(8) as threads:
    found = list(threads.map(lambda i: reader.read(i % 12, 0, 50), range(300)))
  assert found == [(bytes([i % 12]) + DATA)[:50] for i in range(300)]
  assert len(os.listdir("/proc/self/fd")) <= before + 5


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts what Linux has open")
@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("suffix", [".data", ".sums"])
def test_a_cache_that_cannot_be_opened_keeps_nothing_open(tmp_path, suffix):
  (tmp_path / "x").with_suffix(suffix).mkdir()
  before = len(os.listdir("/proc/self/fd"))
  with pytest.raises(IsADirectoryError):
    Cache(tmp_path / "x", 1000)
  gc.collect()
  assert len(os.listdir("/proc/self/fd")) == before


def test_a_cache_ends_at_its_limit_and_notices_damage(tmp_path):
  limit = 300_000
  cache = Cache(tmp_path / "x", limit)
  for row in range(100):
    cache.put(row, row * 10_000, bytes([row]) * 10_000)
  there = [row for row in range(100) if cache.get(row, row * 10_000, 10_000)]
  assert there == list(range(len(there))) and 10 <= len(there) < 60
  assert cache.taken() <= limit + limit // 8
  assert all(cache.get(row, row * 10_000, 10_000) == bytes([row]) * 10_000 for row in there)
  with open(tmp_path / "x.data", "r+b") as file:
    file.seek(5)
    file.write(b"damage")
  assert cache.get(0, 0, 10_000) is None and cache.get(1, 10_000, 10_000)
