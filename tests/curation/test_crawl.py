import io
import os
import pathlib
import sys

import numpy as np
import pytest
from PIL import Image

from dinov3_jax.curation import crawl

ROOT = pathlib.Path(__file__).parents[2]


def encoded(image, form="PNG", **settings):
  out = io.BytesIO()
  Image.fromarray(image).save(out, form, **settings)
  return out.getvalue()


def picture(seed, height=80, width=100):
  return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def reason(data, path="x.png", **limits):
  return crawl.examine(dict(bytes=data, path=path), **limits)["reason"]


def test_what_is_kept():
  assert reason(encoded(picture(0))) == ""
  assert reason(encoded(picture(0))[:200]) == "damaged"
  assert reason(encoded(picture(0, 63))) == "small"
  assert reason(encoded(picture(0, 63)), min_side=63) == ""
  assert reason(encoded(picture(0, 80, 321))) == "long"
  assert reason(encoded(picture(0, 80, 320))) == ""


def test_pixels_give_the_name():
  name = lambda data, path: crawl.examine(dict(bytes=data, path=path))["name"]
  png, webp = encoded(picture(0)), encoded(picture(0), "WEBP", lossless=True)
  a, b = name(png, "one/a.PNG"), name(webp, "b.webp")
  assert a[:32] == b[:32] and a.endswith(".png") and b.endswith(".webp")
  assert name(encoded(picture(1)), "a.png")[:32] != a[:32]
  assert name(png, "without") == a[:32] + ".jpg"
  # The same bytes in another shape are another image.
  flat = picture(0).reshape(100, 80, 3)
  assert crawl.pixel_hash(flat) != crawl.pixel_hash(picture(0))


def test_equal_images_fall_on_one_file(tmp_path):
  png, webp = encoded(picture(0)), encoded(picture(0), "WEBP", lossless=True)
  keep = lambda data, path: crawl.keep(dict(bytes=data, path=path), out=str(tmp_path))["reason"]
  assert [keep(png, "a.png"), keep(webp, "b.webp"), keep(png, "c.png"), keep(b"", "d.png")] == [
    "kept", "equal", "equal", "damaged"]
  file, = (path for path in tmp_path.rglob("*") if path.is_file())
  assert file.read_bytes() == png


def test_without_ray(monkeypatch, tmp_path):
  monkeypatch.setitem(sys.modules, "ray", None)
  with pytest.raises(ValueError, match=r"needs Ray Data: pip install 'ray\[data\]'"):
    crawl.front("x", tmp_path)


@pytest.mark.slow
def test_a_crawl_on_a_local_cluster(tmp_path, monkeypatch):
  ray = pytest.importorskip("ray", reason="needs `pip install 'ray[data]'`")
  (tmp_path / "crawl").mkdir()
  for i in range(12):
    (tmp_path / "crawl" / f"{i}.png").write_bytes(encoded(picture(i % 8)))
  (tmp_path / "crawl" / "small.png").write_bytes(encoded(picture(20, 10)))
  (tmp_path / "crawl" / "cut.png").write_bytes(encoded(picture(21))[:100])
  # Its processes import this package, and need no more of JAX than that.
  monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), *sys.path]))
  ray.init(num_cpus=1, include_dashboard=False, object_store_memory=2**27, log_to_driver=False)
  try:
    found = crawl.front(str(tmp_path / "crawl"), tmp_path / "pool")
    assert found == dict(kept=8, equal=4, small=1, damaged=1)
    assert len(list((tmp_path / "pool").rglob("*.png"))) == 8
    again = crawl.front(str(tmp_path / "crawl"), tmp_path / "pool")
    assert again == dict(equal=12, small=1, damaged=1)
    with pytest.raises(ValueError, match="there are no files at"):
      crawl.front(str(tmp_path / "none"), tmp_path / "pool")
  finally:
    ray.shutdown()
