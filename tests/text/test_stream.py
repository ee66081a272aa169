import numpy as np
import pytest

from dinov3_jax.data.pairs.base import pair
from dinov3_jax.data.pairs.folder import folder_pairs
from dinov3_jax.data.pipeline import TooManyDamaged
from dinov3_jax.data.sources import DamagedImage
from dinov3_jax.text.stream import Stored, Windows, make_pair_pipeline
from dinov3_jax.text.tokenizer import END, START, Tokenizer

WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight"]
WINDOWS = Windows(8, (0.08, 1.0), False)


class Images:
  """Eight grey images; those in `damaged` cannot be read."""

  labels = classes = None
  damaged = ()

  def __len__(self):
    return 8

  def __getitem__(self, index):
    if index in self.damaged:
      raise DamagedImage(str(index), "it is damaged")
    return {"image": np.full((12, 16, 3), 30 * index, np.uint8), "label": -1, "name": str(index)}


@pytest.fixture(scope="module")
def tokenizer():
  return Tokenizer()


def stream(tokenizer, images=None, **options):
  captions = [[word, f"the {word}"] for word in WORDS]
  options = dict(context=6, max_damaged=1.0) | options
  return make_pair_pipeline(pair(images or Images(), captions, "words"), WINDOWS, tokenizer, 4,
                            **options)


def said(tokenizer, tokens):
  return [tokenizer.decode(i for i in row if i not in (0, START, END)).strip() for row in tokens]


def test_a_caption_is_one_of_its_images_and_each_is_drawn(tokenizer):
  batches = stream(tokenizer)
  seen = {}
  for _ in range(16):
    batch = next(batches)
    assert batch["images"].shape == (4, 8, 8, 3) and batch["tokens"].shape == (4, 6)
    for image, text in zip(batch["images"], said(tokenizer, batch["tokens"])):
      seen.setdefault(int(image[0, 0, 0]) // 30, set()).add(text)
  assert seen == {i: {word, f"the {word}"} for i, word in enumerate(WORDS)}


def test_the_stream_goes_on_where_it_was(tokenizer):
  first, second = stream(tokenizer, seed=3), stream(tokenizer, seed=3)
  for _ in range(3):
    next(first)
  second.set_state(first.get_state())
  for _ in range(2):
    a, b = next(first), next(second)
    for name in a:
      np.testing.assert_array_equal(a[name], b[name])
  other = next(stream(tokenizer, seed=4))
  assert not np.array_equal(other["tokens"], next(stream(tokenizer, seed=3))["tokens"])


def test_shards_together_make_the_batch_of_one(tokenizer):
  whole = next(stream(tokenizer))
  parts = [next(stream(tokenizer, shards=2, local_shards=[i])) for i in range(2)]
  for name, x in whole.items():
    np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), x)


def test_processes_make_the_same_batches(tokenizer, captioned):
  pairs = folder_pairs(captioned, "train")
  threads, processes = (make_pair_pipeline(pairs, WINDOWS, tokenizer, 4, context=6, workers=n)
                        for n in (0, 1))
  a, b = next(threads), next(processes)
  processes.close()
  np.testing.assert_array_equal(a["tokens"], b["tokens"])
  np.testing.assert_array_equal(a["images"], b["images"])


def test_the_caption_of_a_damaged_image_goes_with_it(tokenizer, caplog):
  images = Images()
  images.damaged = range(7)
  batch = next(stream(tokenizer, images))
  assert {text.split()[-1] for text in said(tokenizer, batch["tokens"])} == {"eight"}
  assert "Damaged image, replaced by the next one: " in caplog.text
  images.damaged = range(8)
  with pytest.raises(TooManyDamaged, match="none of the 8 images can be read"):
    next(stream(tokenizer, images))


@pytest.mark.parametrize("options, message", [
  (dict(shards=3), "cannot be spread over 3 data shards"),
  (dict(workers=-1), "data.workers"), (dict(seed=-1), "seed -1"),
  (dict(max_damaged=2.0), "max_damaged 2.0")])
def test_numbers_that_do_not_fit(tokenizer, options, message):
  with pytest.raises(ValueError, match=message):
    stream(tokenizer, **options)


def test_windows_need_a_range_of_shares():
  with pytest.raises(ValueError, match=r"images\.scale"):
    Windows(8, (0.0, 1.0), False)


def test_of_stored_views_one_is_drawn(tokenizer):
  class Features:
    """Eight images of three views: all elements of a view are its number, 0 to 23."""

    labels = classes = None

    def __len__(self):
      return 8

    def __getitem__(self, index):
      views = np.full((3, 5, 2), np.arange(3 * index, 3 * index + 3)[:, None, None], np.float32)
      return {"features": views, "captions": [WORDS[index]]}

  batches = make_pair_pipeline(Features(), Stored((5, 2), np.dtype(np.float32)), tokenizer, 4,
                               context=6)
  seen = set()
  for _ in range(24):
    batch = next(batches)
    assert batch["features"].shape == (4, 5, 2) and set(batch) == {"features", "tokens"}
    for features, text in zip(batch["features"], said(tokenizer, batch["tokens"])):
      assert text == WORDS[int(features[0, 0]) // 3]
      seen.add(int(features[0, 0]))
  assert seen == set(range(24))
