"""Figures and losses of depth maps against recorded ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinov3_jax.evals import depth


@pytest.fixture(scope="module")
def maps(golden, recorded):
  arrays, record = golden("evals/depth_maps"), recorded("depth")
  valid = depth.valid_pixels(arrays["gt"], *record["range"])
  return record, arrays, valid


def check(figures, record):
  assert figures.keys() == record.keys()
  for name, value in figures.items():
    assert value == pytest.approx(record[name], rel=1e-5, abs=1e-6), name


def test_figures(maps):
  record, arrays, valid = maps
  assert valid.sum() == record["n_valid"]
  clamp = lambda x: np.clip(x, *record["range"])
  check(depth.figures(clamp(arrays["pred"]), arrays["gt"], valid), record["metrics"])
  check(depth.figures(clamp(arrays["relative"]), arrays["gt"], valid), record["metrics_unaligned"])
  check(depth.figures(arrays["gt"], arrays["gt"], valid), record["perfect"])


def test_alignment(maps):
  record, arrays, valid = maps
  scale, shift = depth.align(arrays["relative"], arrays["gt"], valid)
  assert scale == pytest.approx(record["scale"], rel=1e-5)
  assert shift == pytest.approx(record["shift"], rel=1e-5)
  aligned = np.clip(scale * arrays["relative"] + shift, *record["range"])
  check(depth.figures(aligned, arrays["gt"], valid), record["metrics_aligned"])


def test_sig_loss(maps):
  record, arrays, valid = maps
  loss = lambda p, variance: depth.sig_loss(p, jnp.asarray(arrays["gt"]), valid, variance)
  first, later = (float(loss(arrays["pred"], variance)) for variance in (False, True))
  assert first == pytest.approx(record["losses"]["sigloss_first_100"], rel=1e-4)
  assert later == pytest.approx(record["losses"]["sigloss_later"], rel=1e-4)
  gradient = jax.grad(loss)(jnp.asarray(arrays["pred"]), True)
  np.testing.assert_allclose(gradient, arrays["sigloss_gradient"], atol=1e-6)


def test_a_perfect_map_has_no_loss_and_a_finite_gradient():
  truth = jnp.ones((2, 2))
  value, gradient = jax.value_and_grad(depth.sig_loss)(truth, truth, truth > 0)
  assert value == 0 and (gradient == 0).all()


def test_eigen_crop(recorded):
  for name, (top, bottom, left, right, count) in recorded("depth")[
      "eval_masks_y0_y1_x0_x1_count"].items():
    height, width = map(int, name.rsplit("_", 1)[1].split("x"))
    if name.startswith("NYU"):
      mask = depth.eigen_crop(height, width)
      rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
      assert (rows[0], rows[-1] + 1, columns[0], columns[-1] + 1) == (top, bottom, left, right)
      assert mask.sum() == count


def test_garg_crop():
  rows, columns = np.nonzero(depth.garg_crop(375, 1242))
  assert (rows.min(), rows.max() + 1, columns.min(), columns.max() + 1) == (153, 371, 44, 1197)


def test_bins(golden):
  equal = depth.from_bins(jnp.zeros((3, 256)), 0.001, 10)
  np.testing.assert_allclose(equal, 5.0005, rtol=1e-5)
  sure = depth.from_bins(1e6 * jax.nn.one_hot(jnp.array([0, 255]), 256), 0.001, 10)
  np.testing.assert_allclose(sure, [0.001, 10], atol=1e-3)


def test_bad_input():
  one = np.ones((2, 2))
  with pytest.raises(ValueError, match="no pixel of valid depth"):
    depth.figures(one, one, one > 1)
  with pytest.raises(ValueError, match="must be positive"):
    depth.figures(0 * one, one, one > 0)
  with pytest.raises(ValueError, match="too few depths"):
    depth.align(one, one, one > 0)
