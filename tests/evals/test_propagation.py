"""Label propagation against recorded frames."""

import jax.numpy as jnp
import numpy as np
import pytest

from dinov3_jax.evals import propagation as p


@pytest.fixture(scope="module")
def video(golden, recorded):
  return golden("evals/tracking_video"), recorded("tracking")


def one_hot(labels, count=3):
  return np.eye(count, dtype=np.float32)[labels]


@pytest.mark.parametrize("name", ["best", "small_circle", "small_square", "short", "long"])
def test_notebook(video, name):
  arrays, record = video
  s = record["settings"][name]
  settings = p.Propagation(s["context"], s["size"], s["shape"], s["topk"], s["temperature"])
  first = p.sample_labels(arrays["masks"][0], 10, 14)
  np.testing.assert_array_equal(first, arrays["first_grid"])
  soft = list(p.propagate(arrays["features"], one_hot(first), settings))
  np.testing.assert_allclose([soft[i] for i in record["frames_of_probs"]], arrays[f"{name}_probs"],
                             atol=2e-4)
  height, width = arrays["masks"].shape[1:]
  found = np.stack([p.to_pixels(x, height, width, "nearest", stretch=True) for x in soft[1:]])
  assert (found == arrays[f"{name}_pred"][1:]).mean() == 1
  last = arrays["masks"][-1]
  iou = [((found[-1] == i) & (last == i)).sum() / ((found[-1] == i) | (last == i)).sum()
         for i in (1, 2)]
  np.testing.assert_allclose(iou, s["iou_last"], atol=1e-6)


def test_code_of_dino(video):
  arrays, _ = video
  settings = p.Propagation(int(arrays["dino_n_last_frames"]), int(arrays["dino_size"]), "square",
                           int(arrays["dino_topk"]), float(arrays["dino_temperature"]))
  soft = list(p.propagate(arrays["features"], one_hot(arrays["first_grid"]), settings))
  recorded = arrays["dino_probs"].transpose(0, 2, 3, 1)
  np.testing.assert_allclose([soft[i] for i in (1, 2, 5, 10)], recorded, atol=2e-4)
  found = [p.to_pixels(x, 80, 112, "bilinear", stretch=True) for x in soft[1:]]
  np.testing.assert_array_equal(found, arrays["dino_pred"])


def test_chunks_change_nothing(video, monkeypatch):
  arrays, _ = video
  first = one_hot(arrays["first_grid"])
  whole = list(p.propagate(arrays["features"][:4], first))
  monkeypatch.setitem(p.SIMILARITIES, "cpu", 8 * 140 * 9)  # nine patches at once
  p._next.clear_cache()
  parts = list(p.propagate(arrays["features"][:4], first))
  p._next.clear_cache()
  np.testing.assert_allclose(parts, whole, atol=1e-6)


def test_neighbourhoods(video):
  for name, count in video[1]["neighbours_of_patch_5_7"].items():
    shape, radius = name.split("_")
    assert p.neighbourhood(10, 14, int(radius), shape)[5 * 14 + 7].sum() == count


def test_frame_sizes(video):
  for width, height, short, patch, *expected in video[1]["resize"]:
    assert p.frame_size(height, width, short, patch) == tuple(expected)


def test_a_still_video_keeps_its_mask():
  features = np.random.default_rng(0).standard_normal((5, 6, 6, 32))
  mask = np.random.default_rng(1).integers(0, 3, (6, 6))
  settings = p.Propagation(neighbours=1)
  for soft in p.propagate([features[0]] * 5, one_hot(mask), settings):
    np.testing.assert_array_equal(soft.argmax(-1), mask)


def test_bad_input():
  with pytest.raises(ValueError, match='"circle" or "square"'):
    p.Propagation(shape="disc")
  with pytest.raises(ValueError, match="positive temperature"):
    p.Propagation(temperature=0)
  with pytest.raises(ValueError, match="frame 0 has 2 x 3 patches, the first mask 2 x 2"):
    list(p.propagate([np.ones((2, 3, 4))], np.ones((2, 2, 1))))
  with pytest.raises(ValueError, match='"bilinear" or "nearest"'):
    p.to_pixels(np.ones((1, 1, 1)), 2, 2, "cubic")


@pytest.mark.parametrize("columns", [20, 700])  # few ones are looked at all together
@pytest.mark.parametrize("k", [1, 2, 5, 16, 17])
def test_the_kth_largest_counts_equal_entries(k, columns):
  x = np.random.default_rng(0).integers(0, 12, (40, columns)).astype(np.float32)
  x[::3, 4:] = -np.inf
  x[1::3] -= np.arange(columns) // 64  # the largest ones stand side by side
  np.testing.assert_array_equal(p._kth_largest(jnp.asarray(x), k), np.sort(x)[:, -k, None])
