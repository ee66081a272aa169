import logging
import re

import numpy as np
import pytest

from dinov3_jax.weights.unwrapping import unwrap

ARRAYS = {name: np.full(2, i, "f4") for i, name in enumerate(["cls_token", "norm.weight"])}
OTHER = {name: x + 10 for name, x in ARRAYS.items()}
PROJECTORS = {"projectors.a.weight": np.ones(3), "projectors.b.weight": np.ones(3)}


def prefixed(prefix, arrays=ARRAYS):
  return {prefix + name: x for name, x in arrays.items()}


def assert_same(found, expected=ARRAYS):
  assert found.keys() == expected.keys()
  assert all(found[name] is x for name, x in expected.items())


@pytest.mark.parametrize("content", [
    ARRAYS,
    {"model": ARRAYS}, {"state_dict": ARRAYS}, {"teacher": ARRAYS}, {"backbone": ARRAYS},
    {"student": ARRAYS}, {"model": {"backbone": ARRAYS}}, {"teacher": {"model": ARRAYS}},
    {"state_dict": {"teacher": {"backbone": ARRAYS, "dino_head": OTHER}}},
    {"model": ARRAYS, "epoch": 3, "args": object(), "optimizer": {"state": {0: OTHER}},
     "rng": np.zeros(9), "scheduler": {}},
    prefixed("module."), prefixed("_orig_mod."), prefixed("model."), prefixed("backbone."),
    prefixed("teacher."), prefixed("student."), prefixed("module._orig_mod.model.backbone."),
    prefixed("module.module."),
    {"teacher": prefixed("backbone.") | prefixed("dino_head.", OTHER)
     | prefixed("ibot_head.", OTHER)},
    {"state_dict": prefixed("model._orig_mod.")},
    prefixed("teacher.backbone.") | prefixed("teacher.dino_head.", OTHER),
    {"epoch": 3, **ARRAYS},
])
def test_what_is_wrapped_around_a_model(content):
  assert_same(unwrap(content))


def test_names_without_the_prefix_stay():
  """Hugging Face's own files have `model.` before the layers alone."""
  content = {"embeddings.cls_token": 1 * ARRAYS["cls_token"], "model.layer.0.x": np.ones(1),
             "norm.weight": np.ones(1)}
  assert set(unwrap(content)) == {"embeddings.cls_token", "layer.0.x", "norm.weight"}
  assert set(unwrap(prefixed("model.", content))) == set(unwrap(content))


@pytest.mark.parametrize("content", [
    {"teacher": ARRAYS, "student": OTHER}, prefixed("teacher.") | prefixed("student.", OTHER),
    {"model": {"student": OTHER, "teacher": ARRAYS}, "epoch": 1},
    prefixed("module.student.backbone.", OTHER) | prefixed("module.teacher.backbone."),
    {"gram": OTHER, "student": OTHER, "teacher": ARRAYS}])
def test_of_two_networks_the_teacher_is_taken(content):
  assert_same(unwrap(content))
  assert_same(unwrap(content, "student"), OTHER)


@pytest.mark.parametrize("content, said", [
    ({"model": ARRAYS, "state_dict": OTHER}, "may mean any of its model, state_dict: save the one"),
    ({"model": ARRAYS, "model_ema": OTHER}, "may mean any of its model, model_ema"),
    ({"teacher": ARRAYS, "student": OTHER, "model": ARRAYS}, "any of its teacher, student, model"),
    (prefixed("model.") | prefixed("backbone.", OTHER), "may mean any of its model, backbone"),
    (prefixed("model.") | OTHER, "cls_token, norm.weight is there with and without model: save"),
    ({}, "holds no arrays"), ({"epoch": 3}, "holds no arrays"), ({"model": {}}, "holds no arrays"),
    ({"encoder": ARRAYS}, "holds its arrays within encoder, and not within one of teacher, stude"),
    ({**ARRAYS, "encoder": OTHER}, "holds further arrays within encoder: save one model alone"),
    ({0: ARRAYS["cls_token"]}, "holds arrays named 0, which are no names of parameters"),
    (prefixed("dino_head."), "holds heads alone, and no backbone")])
def test_what_is_no_one_model(content, said):
  with pytest.raises(ValueError, match=re.escape(said)):
    unwrap(content)


def test_a_third_network_is_asked_for():
  with pytest.raises(ValueError, match="any of its teacher, student"):
    unwrap({"teacher": ARRAYS, "student": OTHER}, "gram_teacher")


@pytest.mark.parametrize("content", [{"model": ARRAYS | PROJECTORS}, ARRAYS | PROJECTORS,
                                     prefixed("backbone.") | PROJECTORS])
def test_projectors_are_left_out_and_said(content, caplog):
  with caplog.at_level(logging.WARNING):
    assert_same(unwrap(content))
  assert [record.getMessage() for record in caplog.records] == [
      "left out: 2 arrays of projectors, which are no part of the backbone"]


def test_wrappers_without_end():
  content = {"epoch": 1}
  content["model"] = content
  with pytest.raises(ValueError, match="holds no arrays"):
    unwrap(content)
  assert_same(unwrap(content | ARRAYS))
  many = {"a": 1}
  for _ in range(7):  # as many mappings as 100^7, if each were looked at every time
    many = {str(i): many for i in range(100)}
  with pytest.raises(ValueError, match="holds no arrays"):
    unwrap(many)
  deep = ARRAYS
  for _ in range(5000):
    deep = {"model": deep}
  with pytest.raises(ValueError, match="holds no arrays"):
    unwrap(deep)
