"""What is known of pixels, in place of features."""

from functools import partial

import jax.numpy as jnp
import numpy as np

from dinov3_jax.evals import mini_stand_ins, mini_truth
from dinov3_jax.evals.mini_stand_ins import PatchMeans


def test_mean_colours_are_those_of_patches():
  images = np.random.default_rng(0).standard_normal((2, 16, 24, 3)).astype(np.float32)
  found = PatchMeans(8)(images)
  assert found["patches"].shape == (2, 6, 3)
  np.testing.assert_allclose(found["patches"][1, 4], images[1, 8:, 8:16].mean((0, 1)), atol=1e-6)
  np.testing.assert_allclose(found["cls"], images.mean((1, 2)), atol=1e-6)


def test_classes_are_read_from_their_colours():
  """A little noise, as of JPEG, changes none; a patch has the share of each class."""
  codes = np.arange(1000)
  noise = np.random.default_rng(0).integers(-9, 10, (1000, 3))
  read = mini_stand_ins.classes((mini_truth.colours(codes) + noise) / 255, count=1000)
  assert (read.argmax(-1) == codes).all() and (read.sum(-1) == 1).all()
  halves = np.where(np.arange(8)[:, None] < 2, 3, 7) * np.ones((8, 8), int)
  known = partial(mini_stand_ins.classes, count=10)
  (patch,) = PatchMeans(8, known)(mini_truth.colours(halves)[None] / 255)["patches"][0]
  assert patch[3] == 0.25 and patch[7] == 0.75


def test_the_cosine_of_places_falls_with_their_distance():
  x = jnp.stack([jnp.linspace(0, 1, 101), *[jnp.full(101, 0.3)] * 2], -1)
  found = mini_stand_ins.places(x)
  cosine = np.asarray(found @ found[20]) / 9
  assert cosine.argmax() == 20 and abs(cosine[20] - 1) < 1e-5
  assert (np.diff(cosine[20:36]) < 0).all() and (np.diff(cosine[5:21]) > 0).all()


def test_levels_interpolate():
  grey = jnp.array([0.0, 0.123, 0.5, 1.0])
  found = mini_stand_ins.levels(jnp.stack([grey] * 3, -1))
  np.testing.assert_allclose(found @ (jnp.arange(64) / 63), grey, atol=1e-6)
  np.testing.assert_allclose(found.sum(-1), 1, atol=1e-5)
