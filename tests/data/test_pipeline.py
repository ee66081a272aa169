"""The stream: the same for any number of workers and processes, and restored exactly."""

import errno
import json
import os
import re
import signal
import sys

import cloudpickle
import numpy as np
import pytest
from PIL import Image

from dinov3_jax.data import pipeline as pipeline_module
from dinov3_jax.data import shared_memory
from dinov3_jax.data.crops import MultiCrop
from dinov3_jax.data.masks import masked_count
from dinov3_jax.data.pipeline import DataError, TooManyDamaged, make_pipeline
from dinov3_jax.data.sources import DamagedImage, open_source
from dinov3_jax.data.sources.mixture import Member, Mixture

SMALL = MultiCrop(32, 16, locals=2, patch_size=8)
LARGE = MultiCrop(48, 24, gram_size=64, locals=3, patch_size=8)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
  """A folder of 21 images, two of them damaged: not enough for a batch of 8 to divide."""
  root = tmp_path_factory.mktemp("images")
  rng = np.random.default_rng(0)
  for i in range(21):
    Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(root / f"{i:02}.png")
  for i in (5, 6):
    (root / f"{i:02}.png").write_bytes(b"broken")
  return open_source(str(root), "all")


class Plain:
  """An image of one colour for each index, damaged where told."""

  labels = classes = None

  def __init__(self, count, damaged=()):
    self.count, self.damaged = count, set(damaged)

  def __len__(self):
    return self.count

  def __getitem__(self, index):
    if index in self.damaged:
      raise DamagedImage(f"{index}.jpg", "no image")
    return {"image": np.full((8, 8, 3), index % 256, np.uint8), "label": -1, "name": f"{index}.jpg"}


class Whole:
  """Stands in for MultiCrop: the image itself, so that a batch tells what was read."""

  global_size, patch_size, shapes = 8, 4, {"global_crops": (2, 8, 8, 3)}

  def __call__(self, image, rng, into):
    into["global_crops"][:] = image


def stream(source, *, crops=(SMALL, LARGE), weights=(0.5, 0.5), batch_size=8, shards=4,
           max_damaged=0.5, **options):
  return make_pipeline(source, crops, weights, batch_size, shards=shards,
                       max_damaged=max_damaged, **options)


def take(pipeline, count):
  batches = [next(pipeline) for _ in range(count)]
  pipeline.close()
  return batches


def assert_same(ours, theirs):
  assert len(ours) == len(theirs)
  for one, other in zip(ours, theirs):
    assert set(one) == set(other)
    for name in one:
      assert one[name].dtype == other[name].dtype
      np.testing.assert_array_equal(one[name], other[name])


@pytest.fixture(scope="module")
def reference(source):
  return take(stream(source), 8)


def test_batches_keep_the_contract(reference):
  seen = set()
  for batch in reference:
    crop = LARGE if "gram_crops" in batch else SMALL
    seen.add(crop)
    for name, shape in crop.shapes.items():
      assert batch[name].shape == (8, *shape) and batch[name].dtype == np.uint8
    patches = (crop.global_size // 8) ** 2
    count = masked_count(4, patches)
    assert set(batch) == {*crop.shapes, "masks", "mask_indices", "mask_weights"}
    assert batch["masks"].shape == (8, 2, patches) and batch["masks"].dtype == bool
    assert batch["mask_indices"].shape == (4, count) and batch["mask_indices"].dtype == np.int32
    assert batch["mask_weights"].shape == (4, count) and batch["mask_weights"].dtype == np.float32
    for shard, masks in enumerate(batch["masks"].reshape(4, -1)):
      np.testing.assert_array_equal(batch["mask_indices"][shard], np.flatnonzero(masks))
    assert len({masks.tobytes() for masks in batch["masks"].reshape(4, -1)}) == 4
  assert seen == {SMALL, LARGE}


def test_seed_decides(source, reference):
  assert_same(take(stream(source), 2), reference[:2])
  first = take(stream(source, crops=[SMALL], weights=[1.0], seed=1), 1)[0]
  second = take(stream(source, crops=[SMALL], weights=[1.0], seed=2), 1)[0]
  for name in ("global_crops", "local_crops", "masks"):
    assert (first[name] != second[name]).any()


@pytest.mark.parametrize("workers, step", [(1, 0), (2, 3)])
def test_workers_change_nothing(source, reference, workers, step):
  pipeline = stream(source, workers=workers)
  pipeline.set_state({"step": step})
  assert_same(take(pipeline, 4), reference[step : step + 4])
  assert pipeline.get_state() == {"step": step + 4}


@pytest.mark.parametrize("workers", [0, 2, 5])
def test_parts_of_batches_are_put_together(source, reference, workers, monkeypatch):
  """Parts of three images, which neither batch nor shards of two divide by."""
  monkeypatch.setattr(pipeline_module, "PART", 3)
  pipeline = stream(source, workers=workers)
  assert pipeline._maker.parts == 3
  if workers:  # which import a module of their own
    monkeypatch.setattr(pipeline, "_maker", SmallParts(**vars(pipeline._maker)))
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
  pipeline.set_state({"step": 2})
  assert_same(take(pipeline, 3), reference[2:5])


class SmallParts(pipeline_module.PartMaker):
  """Makes parts of three images, in whatever process."""

  def __call__(self, place):
    pipeline_module.PART = 3
    return super().__call__(place)


def test_a_mixture_is_the_same_for_any_workers_and_says_its_shares(monkeypatch, caplog):
  caplog.set_level("INFO")
  mixture = Mixture([Member("alone", Plain(50), 0.1, True), Member("a", Plain(70), 0.75),
                     Member("b", Plain(9, damaged=[2]), 0.25)])
  make = lambda **options: stream(mixture, crops=[Whole()], weights=[1.0], shards=2, **options)
  whole = take(make(), 100)
  assert re.search(r"of the images of 100 batches: alone \d+\.\d%, a 6\d\.\d%, b \d+\.\d%",
                   caplog.text)
  cloudpickle.register_pickle_by_value(sys.modules[__name__])
  pipeline = make(workers=2)
  pipeline.set_state({"step": 40})
  assert_same(take(pipeline, 5), whole[40:45])
  parts = [take(make(local_shards=[shard]), 20) for shard in (0, 1)]
  for step in range(20):
    np.testing.assert_array_equal(whole[step]["global_crops"], np.concatenate(
      [part[step]["global_crops"] for part in parts]))


@pytest.mark.parametrize("step", [0, 1, 5])
def test_resume_is_exact_and_needs_no_replay(source, reference, step, monkeypatch):
  pipeline = stream(source)
  for _ in range(step):
    next(pipeline)
  state = json.loads(json.dumps(pipeline.get_state()))
  pipeline.close()

  resumed = stream(source)
  resumed.set_state(state)
  made = []
  real = pipeline_module.PartMaker.__call__
  monkeypatch.setattr(pipeline_module.PartMaker, "__call__",
                      lambda self, at: made.append(at) or real(self, at))
  assert_same(take(resumed, 2), reference[step : step + 2])
  assert min(made) == step
  assert resumed.get_state() == {"step": step + 2}


@pytest.mark.parametrize(
  "shares", [[[0, 1], [2, 3]], [[0, 2], [1, 3]], [[3], [0], [1, 2]]], ids=str)
def test_processes_share_one_global_batch(source, reference, shares):
  parts = [take(stream(source, local_shards=share), 3) for share in shares]
  order = np.argsort(np.concatenate(shares))

  def whole(step, name):  # its four shards, put in order
    rows = np.concatenate([part[step][name] for part in parts])
    return rows.reshape(4, -1, *rows.shape[1:])[order].reshape(rows.shape)

  assert_same([{name: whole(step, name) for name in reference[step]} for step in range(3)],
              reference[:3])


def test_every_pass_sees_every_image_in_a_new_order():
  pipeline = stream(Plain(12), crops=[Whole()], weights=[1.0], batch_size=4, shards=1)
  seen = np.concatenate([batch["global_crops"][:, 0, 0, 0, 0] for batch in take(pipeline, 6)])
  for one_pass in (seen[:12], seen[12:]):
    assert sorted(one_pass) == list(range(12))
  assert seen[:12].tolist() != seen[12:].tolist() != list(range(12))


def test_resolutions_follow_their_weights():
  class Small(Whole):
    global_size, shapes = 4, {"global_crops": (2, 4, 4, 3)}

    def __call__(self, image, rng, into):
      into["global_crops"][:] = image[:4, :4]

  pipeline = stream(Plain(5000), crops=[Whole(), Small()], weights=[0.8, 0.2], batch_size=1,
                    shards=1)
  sides = [batch["global_crops"].shape[2] for batch in take(pipeline, 400)]
  assert np.mean(np.array(sides) == 8) == pytest.approx(0.8, abs=0.06)


def test_damaged_images_are_replaced_named_and_counted(caplog):
  pipeline = stream(Plain(12, damaged=[3, 4]), crops=[Whole()], weights=[1.0], batch_size=4,
                    shards=1)
  seen = np.concatenate([batch["global_crops"][:, 0, 0, 0, 0] for batch in take(pipeline, 6)])
  assert sorted(seen[:12]) == [0, 1, 2, 5, 5, 5, *range(6, 12)]
  assert [caplog.text.count(f"{i}.jpg cannot be read") for i in (3, 4)] == [1, 1]


def test_too_many_damaged_images_stop_the_run():
  source = Plain(200, damaged=range(0, 200, 4))
  pipeline = stream(source, crops=[Whole()], weights=[1.0], batch_size=20, shards=1,
                    max_damaged=0.1)
  with pytest.raises(TooManyDamaged, match=r"of \d+ images \(\d+\.\d%\).*more than "
                     r"max_damaged=10\.0%.*\d+\.jpg cannot be read: no image") as error:
    for _ in range(10):
      next(pipeline)
  pipeline.close()
  assert 1 < pipeline.get_state()["step"] < 10  # not before 100 images
  assert "\n" not in str(error.value)
  tolerant = stream(source, crops=[Whole()], weights=[1.0], batch_size=20, shards=1)
  take(tolerant, 10)


def test_nothing_but_damage_stops_at_once():
  pipeline = stream(Plain(300, damaged=range(300)), crops=[Whole()], weights=[1.0], max_damaged=1)
  with pytest.raises(TooManyDamaged, match="none of the 300 images can be read"):
    next(pipeline)
  pipeline.close()


def test_only_the_share_of_damaged_images_decides():
  source = Plain(250, damaged=range(240))  # long stretches of damage, over the end
  pipeline = stream(source, crops=[Whole()], weights=[1.0], batch_size=25, shards=1, max_damaged=1)
  seen = np.concatenate([batch["global_crops"][:, 0, 0, 0, 0] for batch in take(pipeline, 10)])
  assert set(seen) == set(range(240, 250))
  strict = stream(source, crops=[Whole()], weights=[1.0], batch_size=25, shards=1, max_damaged=0.9)
  with pytest.raises(TooManyDamaged, match=r"of 100 images \(9\d\.0%\)"):
    take(strict, 10)


class Failing(Plain):
  """Raises an error that is no damage, or ends its process, in place of an image."""

  def __init__(self, failure):
    super().__init__(64)
    self.failure = failure

  def __getitem__(self, index):
    if index == 5:
      if isinstance(self.failure, int):
        os.kill(os.getpid(), self.failure)
      raise self.failure
    return super().__getitem__(index)


@pytest.mark.parametrize("failure, message", [
  (FileNotFoundError("the folder is\nnot there"), "made: the folder is not there$"),
  (MemoryError(), "no memory left .* fewer data.workers"),
  (OSError(errno.ENOSPC, "No space left on device"), "No space left on device: /dev/shm is full"),
  (KeyError("image"), "KeyError: 'image'")])
def test_what_ends_the_batches_is_one_line(failure, message):
  pipeline = stream(Failing(failure), crops=[SMALL], weights=[1.0])
  with pytest.raises(DataError, match=message) as error:
    take(pipeline, 20)
  assert error.value.__cause__ is None and error.value.__suppress_context__
  assert "\n" not in str(error.value)


@pytest.mark.parametrize("failure, message", [
  (signal.SIGKILL, r"SIGKILL \(exit code -9\).*without memory.*fewer data\.workers"),
  (PermissionError("the disk is locked"), "made: the disk is locked")])
def test_workers_fail_in_one_line(failure, message, capfd):
  cloudpickle.register_pickle_by_value(sys.modules[__name__])  # which workers cannot import
  pipeline = stream(Failing(failure), crops=[SMALL], weights=[1.0], workers=2)
  with pytest.raises(DataError, match=message):
    take(pipeline, 20)
  assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("code, message", [
  (-signal.SIGBUS, "SIGBUS.*/dev/shm is full"), (-signal.SIGSEGV, "SIGSEGV.*data.workers=0"),
  (1, "ended by itself \\(exit code 1\\).*data.workers=0")])
def test_exit_codes_are_explained(monkeypatch, code, message):
  def start(self):
    raise RuntimeError(f"Worker process was terminated unexpectedly with exit code {code}. Search")

  monkeypatch.setattr(pipeline_module.Pipeline, "_start", start)
  with pytest.raises(DataError, match=message):
    next(stream(Plain(9)))


def test_little_shared_memory_is_said_and_not_used(source, reference, monkeypatch, caplog):
  monkeypatch.setattr(shared_memory, "free", lambda: 100_000)
  shared = []
  real = shared_memory.own
  monkeypatch.setattr(shared_memory, "own", lambda array: shared.append(
    hasattr(array, "shm")) or real(array))
  assert_same(take(stream(source, workers=1), 3), reference[:3])
  assert not any(shared)
  assert re.search(r"take up to \d+ MiB of shared memory with 1 workers, and /dev/shm has 0 MiB "
                   r"left: they go through pipes.*--shm-size=1g", caplog.text)


def test_the_size_of_batches_is_known(reference):
  sizes = [sum(array.nbytes for array in batch.values()) for batch in reference]
  maker = stream(Plain(9))._maker
  assert max(sizes) <= maker.nbytes < 1.2 * max(sizes)
  part = stream(Plain(9), local_shards=[1, 2])._maker
  assert part.nbytes * 2 == maker.nbytes


@pytest.mark.parametrize("wrong, message", [
  (dict(weights=[1.0]), "2 crop sizes but 1 size weights"),
  (dict(weights=[0.5, 0.6]), "sum of 1"), (dict(weights=[1.5, -0.5]), "sum of 1"),
  (dict(batch_size=6), "6 images cannot be spread over 4 data shards"),
  (dict(seed=-1), "seed -1"), (dict(workers=-1), r"workers \(data.workers\) is -1"),
  (dict(max_damaged=2), "max_damaged 2 must be a share"),
  (dict(mask_ratio=(0.5, 0.1)), "must lie in")])
def test_settings_that_do_not_fit_are_errors(wrong, message):
  with pytest.raises(ValueError, match=message):
    stream(Plain(4), **wrong)
