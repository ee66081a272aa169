"""Images that lie in a bucket one by one."""

import pickle

import fsspec
import pytest

from dinov3_jax.data.sources import DamagedImage, open_source
from tests.data.conftest import below


@pytest.fixture
def bucket(images):
  fs = fsspec.filesystem("memory")
  for split in ("train", "val"):
    for name, path in below(images).items():
      fs.pipe(f"/whole/{split}/{name}", path.read_bytes())
  fs.pipe("/whole/train/a/.hidden.png", b"x")
  fs.pipe("/whole/train/notes.txt", b"x")
  return fs


def test_folders_are_read_as_those_of_a_disk(bucket, images):
  train, val = (open_source("memory://whole", split) for split in ("train", "val"))
  assert (len(train), len(val)) == (40, 40) and train.classes == ["a", "b"]
  assert train.name(0) == "train/a/00.png" and train[3]["label"] == 0


def test_objects_are_kept_and_those_that_vanish_are_damaged(bucket):
  source = open_source("memory://whole", "train", cache_gb=0.001)
  first = source.encoded(0)  # the others that were looked at are kept, too
  for i in (0, 1):
    bucket.rm(f"/whole/{source.name(i)}")
  again = pickle.loads(pickle.dumps(source))
  assert again.encoded(0) == first
  with pytest.raises(DamagedImage, match=r"a/02\.png cannot be read: there is no such object"):
    again.encoded(1)
