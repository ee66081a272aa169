import numpy as np
import pytest

from dinov3_jax.text.retrieval import recall


def unit(x):
  return x / np.linalg.norm(x, axis=1, keepdims=True)


def test_recall_of_a_worked_example():
  """Three images; the first has two captions, of which the second is nearest to it."""
  images = np.eye(3)
  texts = unit(np.array([[0.2, 1.0, 0.0], [1.0, 0.1, 0.0], [0.0, 0.3, 1.0], [0.1, 0.0, 1.0]]))
  found = recall(images, texts, [0, 0, 1, 2], ranks=(1, 2, 3))
  # Image 0 finds its own text first. Image 1 is nearest to the first text of image 0, then to its
  # own; image 2 finds its own first, as texts[3] is nearer than texts[2].
  assert found["image_to_text_01"] == pytest.approx(2 / 3)
  assert found["image_to_text_02"] == 1
  # Texts 1 and 3 find their images first, text 0 second, text 2 second.
  assert found["text_to_image_01"] == 0.5 and found["text_to_image_02"] == 1


def test_against_sorting():
  rng = np.random.default_rng(0)
  images, texts = unit(rng.standard_normal((40, 5))), unit(rng.standard_normal((90, 5)))
  owners = rng.integers(0, 40, 90)
  owners[:40] = np.arange(40)  # each has one
  found = recall(images, texts, owners)
  order = np.argsort(-images @ texts.T, axis=1)
  for k in (1, 5, 10):
    expected = np.mean([(owners[row[:k]] == i).any() for i, row in enumerate(order)])
    assert found[f"image_to_text_{k:02}"] == pytest.approx(expected)
  order = np.argsort(-texts @ images.T, axis=1)
  for k in (1, 5, 10):
    expected = np.mean([owner in row[:k] for owner, row in zip(owners, order)])
    assert found[f"text_to_image_{k:02}"] == pytest.approx(expected)


def test_features_that_are_all_alike_find_nothing():
  found = recall(np.ones((20, 3)), np.ones((20, 3)), range(20))
  assert set(found.values()) == {0.0}


def test_an_owner_must_be_an_image():
  with pytest.raises(ValueError, match="2 texts need an owner each among 1 images"):
    recall(np.ones((1, 3)), np.ones((2, 3)), [0, 1])
