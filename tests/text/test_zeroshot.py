import numpy as np

from dinov3_jax.text.zeroshot import accuracy, class_features, imagenet_names, prompts


def test_the_templates_and_names_are_clips():
  assert len(prompts()) == len(set(prompts())) == 80
  assert all(template.count("{}") == 1 for template in prompts())
  assert prompts()[0] == "a bad photo of a {}."
  names = imagenet_names()
  assert len(names) == 1000 and names[0] == "tench" and names[999] == "toilet paper"


def test_a_class_is_the_mean_of_its_templates():
  told = []

  def encode(texts):
    told.extend(texts)
    return np.float32([[3, 4], [4, 3]]) / 5

  features = class_features(encode, ["cat", "dog"], ["a {}.", "the {}."])
  assert told == ["a cat.", "the cat.", "a dog.", "the dog."]
  np.testing.assert_allclose(features, np.full((2, 2), 0.5**0.5), rtol=1e-6)
  assert features.dtype == np.float32


def test_accuracy_counts_the_nearest_classes():
  classes = np.eye(6)
  images = np.array([[0.9, 0.1, 0, 0, 0, 0], [0.9, 0.1, 0, 0, 0, 0],
                     [0.9, 0.5, 0.4, 0.3, 0.2, 0.1]])
  assert accuracy(images, classes, np.array([0, 1, 5])) == dict(top1=1 / 3, top5=2 / 3)


def test_features_that_are_all_alike_are_the_first_class():
  """Which is no better than chance."""
  assert accuracy(np.ones((6, 2)), np.ones((3, 2)), np.arange(6) % 3) == dict(top1=1 / 3)


def test_of_two_classes_of_one_name_the_first_is_right():
  """As for the missiles and the sunglasses among the names of ImageNet's classes."""
  classes = np.eye(7)[[0, 1, 2, 1, 4, 5, 6]]
  assert accuracy(classes, classes, np.arange(7)) == dict(top1=6 / 7, top5=1.0)
