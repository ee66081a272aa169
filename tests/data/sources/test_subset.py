"""Some images of a source, by name."""

import numpy as np
import pytest

from dinov3_jax.data.sources.subset import Subset, places_of


class Named:
  """A source of which nothing but names and labels matters."""

  def __init__(self, names):
    self.classes = ["x", "y"]
    self.names, self.labels = names, np.arange(len(names)) % 2

  def __len__(self):
    return len(self.names)

  def name(self, index):
    return self.names[index]

  def encoded(self, index):
    return self.names[index].encode()

  def __getitem__(self, index):
    return {"image": None, "label": int(self.labels[index]), "name": self.names[index]}


def test_order_and_repetition():
  source = Named(["a", "b", "c"])
  subset = Subset(source, places_of(["c", "a", "c"], source, "list"))
  assert [subset.name(i) for i in range(3)] == ["c", "a", "c"] and subset.encoded(1) == b"a"
  assert subset.labels.tolist() == [0, 0, 0] and subset.classes == ["x", "y"]
  other = Subset(source, np.array([1, 2]), np.array([5, 6]), ["p"])
  assert [other[i]["label"] for i in range(2)] == [5, 6] and other.classes == ["p"]


def test_a_name_of_several_images_means_them_in_turn():
  source = Named(["a", "b", "a"])
  assert places_of(["a", "a", "a", "b"], source, "list").tolist() == [0, 2, 0, 1]


def test_a_name_that_is_not_there():
  with pytest.raises(ValueError, match=r"the list names 2 images .*, the first of them z"):
    places_of(["a", "z", "y"], Named(["a"]), "the list")
