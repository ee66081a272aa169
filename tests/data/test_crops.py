"""Geometry of the crops, against torchvision's rules, and what each view may go through."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dinov3_jax.data import augment, crops
from dinov3_jax.data.crops import MultiCrop, center_crop, check_sizes, random_window


def picture(height=60, width=80, seed=0):
  rng = np.random.default_rng(seed)
  coarse = Image.fromarray(rng.integers(0, 256, (7, 9, 3), dtype=np.uint8))
  return np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))


@pytest.fixture
def plain(monkeypatch):
  """Leaves the colours alone, drawing no less randomness."""
  monkeypatch.setattr(augment, "distort_color", lambda image, *args: image)
  monkeypatch.setattr(augment, "distort_tone", lambda image, *args: image)


@settings(deadline=None, max_examples=60)
@given(height=st.integers(1, 300), width=st.integers(1, 300), seed=st.integers(0, 1000),
       low=st.floats(0.01, 0.9), spread=st.floats(0.0, 0.1))
def test_window_lies_in_the_image(height, width, seed, low, spread):
  top, left, h, w = random_window(height, width, (low, low + spread), np.random.default_rng(seed))
  assert h >= 1 and w >= 1 and top >= 0 and left >= 0
  assert top + h <= height and left + w <= width


def test_windows_are_distributed_as_torchvision_draws_them():
  rng = np.random.default_rng(0)
  size, scale = 400, (0.05, 0.32)
  windows = np.array([random_window(size, size, scale, rng) for _ in range(4000)])
  top, left, height, width = windows.T
  share = height * width / size**2
  # A share of 0.32 at an aspect of 4/3 still fits, so that no draw is refused.
  assert scale[0] * 0.98 < share.min() and share.max() < scale[1] * 1.02
  assert share.mean() == pytest.approx(np.mean(scale), abs=0.005)
  assert share.std() == pytest.approx((scale[1] - scale[0]) / math.sqrt(12), rel=0.05)
  log_aspect = np.log(width / height)
  assert np.abs(log_aspect).max() < math.log(4 / 3) * 1.05
  assert log_aspect.mean() == pytest.approx(0, abs=0.01)
  assert log_aspect.std() == pytest.approx(2 * math.log(4 / 3) / math.sqrt(12), rel=0.05)
  for start, extent in ((top, height), (left, width)):
    place = start / (size - extent)
    assert place.mean() == pytest.approx(0.5, abs=0.02)
    assert place.min() == 0 and place.max() == 1


@pytest.mark.parametrize("height, width, expected", [
  (10, 1000, (0, 493, 10, 13)), (1000, 10, (493, 0, 13, 10))])
def test_fallback_is_the_centre(height, width, expected):
  assert random_window(height, width, (0.9, 1.0), np.random.default_rng(0)) == expected


def test_a_crop_is_cut_before_it_is_resized(plain, monkeypatch):
  image = picture()
  monkeypatch.setattr(crops, "random_window", lambda *args: (5, 7, 40, 50))
  views = MultiCrop(32, 16, locals=1, horizontal_flip=False)(image, np.random.default_rng(0))
  window = Image.fromarray(image[5:45, 7:57])
  expected = np.asarray(window.resize((32, 32), Image.Resampling.BICUBIC))
  np.testing.assert_array_equal(views["global_crops"][0], expected)
  expected = np.asarray(window.resize((16, 16), Image.Resampling.BICUBIC))
  np.testing.assert_array_equal(views["local_crops"][0], expected)


@pytest.mark.parametrize("settings_", [
  dict(), dict(gram_size=48), dict(gram_size=48, gram_distortions=False), dict(gram_size=16),
  dict(share_color_jitter=True), dict(locals_from_globals=True, locals=3),
  dict(locals_from_globals=True, gram_size=48)])
def test_shapes_and_randomness(settings_):
  crop = MultiCrop(32, 16, **settings_)
  one, again, other = (crop(picture(), np.random.default_rng(seed)) for seed in (1, 1, 2))
  assert set(one) == set(crop.shapes)
  for name, shape in crop.shapes.items():
    assert one[name].shape == shape and one[name].dtype == np.uint8
    np.testing.assert_array_equal(one[name], again[name])
    assert (one[name] != other[name]).any()


@pytest.mark.parametrize("settings_", [dict(colors="device"), dict(gram_size=48)])
def test_crops_go_where_they_are_wanted(settings_):
  """Such as to the place of an image in a batch; what was there before does not matter."""
  crop = MultiCrop(32, 16, **settings_)
  new = crop(picture(), np.random.default_rng(0))
  batch = {name: np.full((3, *array.shape), 9, array.dtype) for name, array in new.items()}
  crop(picture(), np.random.default_rng(0), {name: array[1] for name, array in batch.items()})
  for name, array in new.items():
    np.testing.assert_array_equal(batch[name][1], array)
    assert (batch[name][[0, 2]] == 9).all()


def test_plain_gram_crops_share_the_window_and_the_flip(plain):
  image = picture(200, 200)
  crop = MultiCrop(32, 16, gram_size=64, gram_distortions=False)
  for seed in range(4):
    views = crop(image, np.random.default_rng(seed))
    for global_crop, gram_crop in zip(views["global_crops"], views["gram_crops"]):
      smaller = np.asarray(Image.fromarray(gram_crop).resize((32, 32), Image.Resampling.BICUBIC))
      np.testing.assert_array_equal(smaller, global_crop)


@pytest.mark.parametrize("distorted", [True, False])
def test_gram_crops_are_distorted_only_on_demand(monkeypatch, distorted):
  monkeypatch.setattr(augment, "distort_color", lambda image, *args: np.full_like(image, 7))
  monkeypatch.setattr(augment, "distort_tone", lambda image, *args: image)
  views = MultiCrop(32, 16, gram_size=48, gram_distortions=distorted)(
    picture(), np.random.default_rng(0))
  assert (views["global_crops"] == 7).all()
  assert (views["gram_crops"] == 7).all() == distorted


def test_shared_jitter_is_drawn_once(monkeypatch):
  calls = []
  monkeypatch.setattr(augment, "distort_color",
                      lambda image, *args: calls.append(image.shape) or image)
  MultiCrop(32, 16, share_color_jitter=True)(picture(), np.random.default_rng(0))
  assert calls == [(60, 80, 3)]
  calls.clear()
  MultiCrop(32, 16)(picture(), np.random.default_rng(0))
  assert len(calls) == 2 + 8


def test_each_view_has_its_own_blur_and_solarization(monkeypatch):
  calls = []
  monkeypatch.setattr(augment, "distort_tone",
                      lambda image, rng, blur, solarized: calls.append((blur, solarized)) or image)
  MultiCrop(32, 16, locals=3)(picture(), np.random.default_rng(0))
  assert calls == [(0.0, 0.0), (0.9, 0.2)] + 3 * [(0.5, 0.0)]


def test_color_strength_reaches_every_distortion(monkeypatch):
  strengths, solarized = [], []
  monkeypatch.setattr(augment, "distort_color",
                      lambda image, rng, strength: strengths.append(strength) or image)
  monkeypatch.setattr(augment, "distort_tone",
                      lambda image, rng, blur, share: solarized.append(share) or image)
  MultiCrop(32, 16, locals=3, color_strength=0.5)(picture(), np.random.default_rng(0))
  assert strengths == 5 * [0.5] and solarized == [0.0, 0.1, 0.0, 0.0, 0.0]


@pytest.mark.parametrize("gram_size", [0, 128])
def test_locals_from_globals_are_windows_on_the_patch_grid(plain, gram_size):
  crop = MultiCrop(64, 32, locals=6, locals_from_globals=True, gram_size=gram_size)
  seen = set()
  for seed in range(6):
    views = crop(picture(), np.random.default_rng(seed))
    for i, local in enumerate(views["local_crops"]):
      base = views["global_crops"][i // 3]
      spots = [(top, left) for top in range(0, 33, 16) for left in range(0, 33, 16)
               if (base[top : top + 32, left : left + 32] == local).all()]
      assert len(spots) == 1
      seen.update(spots)
  assert {top for top, _ in seen} == {left for _, left in seen} == {0, 16, 32}


def test_half_a_patch_is_cut_off(plain, monkeypatch):
  monkeypatch.setattr(crops, "random_window", lambda *args: (0, 0, 60, 80))
  image = picture()
  views = MultiCrop(64, 40, locals=1, horizontal_flip=False)(image, np.random.default_rng(0))
  whole = np.asarray(Image.fromarray(image).resize((40, 40), Image.Resampling.BICUBIC))
  np.testing.assert_array_equal(views["local_crops"][0], whole[:32, :32])


def test_flips_are_fair_and_can_be_switched_off(plain, monkeypatch):
  monkeypatch.setattr(crops, "random_window", lambda *args: (0, 0, 8, 8))
  image = np.zeros((8, 8, 3), np.uint8)
  image[:, :4] = 255
  for flip, share in ((True, 0.5), (False, 0.0)):
    crop = MultiCrop(8, 8, locals=8, patch_size=8, horizontal_flip=flip)
    rng = np.random.default_rng(0)
    flipped = [view[0, 0, 0] < 128 for _ in range(60) for views in [crop(image, rng)]
               for view in (*views["global_crops"], *views["local_crops"])]
    assert np.mean(flipped) == pytest.approx(share, abs=0.07 if flip else 0)


@pytest.mark.parametrize("sizes", [([30], [16], [0]), ([32], [20], [0]), ([32], [16], [40]),
                                   ([32], [8], [0]), ([0], [16], [0]), ([32, 40], [16], [0])])
def test_sizes_the_patch_does_not_divide_are_errors(sizes):
  with pytest.raises(ValueError, match=r"not a multiple of the patch size 16; take \d+") as error:
    check_sizes(*sizes, patch_size=16)
  assert "\n" not in str(error.value)


def test_sizes_of_the_reference_are_fine():
  check_sizes([512, 768], [112, 168, 224, 336], [0, 768, 1152], 16)


@pytest.mark.parametrize("wrong", [dict(locals=0), dict(global_scale=(0.5, 1.5)),
                                   dict(local_scale=(0.4, 0.2)), dict(global_size=100),
                                   dict(color_strength=1.5),
                                   dict(local_size=256, locals_from_globals=True)])
def test_impossible_settings_are_errors(wrong):
  with pytest.raises(ValueError):
    MultiCrop(**wrong)


def test_center_crop():
  image = picture(60, 81)
  resized = np.asarray(Image.fromarray(image).resize((43, 32), Image.Resampling.BICUBIC))
  np.testing.assert_array_equal(center_crop(image, 32), resized[:, 6:38])
  np.testing.assert_array_equal(center_crop(image, 24, 32), resized[4:28, 10:34])
  assert center_crop(picture(81, 60), 32).shape == (32, 32, 3)
  with pytest.raises(ValueError, match="resize to at least 32"):
    center_crop(image, 32, 24)


@pytest.mark.parametrize("shape", [(2500, 3100), (1999, 7001), (7001, 1999), (5, 900_000)])
def test_large_images_are_reduced_in_parts_as_pillow_does_at_once(shape):
  image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
  for height, width in ((96, 96), (224, 224), (300, 512)):
    whole = Image.fromarray(image).resize((width, height), Image.BICUBIC, reducing_gap=3.0)
    np.testing.assert_array_equal(crops.resize(image, height, width), whole)


def test_windows_of_large_images_are_those_of_small_ones(monkeypatch):
  image, crop = picture(), MultiCrop(32, 16, locals=3, gram_size=48)
  small = crop(image, np.random.default_rng(0))
  monkeypatch.setattr(crops, "BAND", 1)
  for name, views in crop(image, np.random.default_rng(0)).items():
    np.testing.assert_array_equal(views, small[name])


@pytest.mark.parametrize("shape", [(1, 20_000), (20_000, 1), (3, 1_000)])
def test_a_line_of_pixels_takes_little_memory(shape, monkeypatch):
  largest = []
  real = crops.resize
  monkeypatch.setattr(crops, "resize", lambda image, height, width, *how:
                      largest.append(height * width) or real(image, height, width))
  image = np.zeros((*shape, 3), np.uint8)
  middle = tuple(slice(side // 2 - 4, side // 2 + 4) if side > 8 else slice(None) for side in shape)
  image[middle] = 200
  assert center_crop(image, 224, 256).shape == (224, 224, 3)
  views = MultiCrop(32, 16)(image, np.random.default_rng(0))
  assert {name: x.shape for name, x in views.items()} == MultiCrop(32, 16).shapes
  assert max(largest) <= 16 * 256**2
  assert center_crop(image, 224)[112, 112].tolist() == [200, 200, 200]  # still the middle


@pytest.mark.parametrize("width", [159, 160])
def test_an_image_of_one_to_sixteen_is_resized_as_a_whole(width):
  image = picture(10, width)
  whole = np.asarray(Image.fromarray(image).resize((32 * width // 10, 32), Image.BICUBIC))
  left = round((whole.shape[1] - 32) / 2)
  np.testing.assert_array_equal(center_crop(image, 32), whole[:, left : left + 32])
