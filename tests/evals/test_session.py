"""What tasks are given."""

import jax
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from dinov3_jax.data.decode import DamagedImage
from dinov3_jax.data.stored import Stored
from dinov3_jax.evals import session as s
from dinov3_jax.evals.extraction import Stopped
from dinov3_jax.evals.framing import framing


def test_features_are_taken_once(session_of, monkeypatch):
  session = session_of("AmsterTime")
  images = sorted((session.data / "new").iterdir())
  look = framing(session.prepare, 32)
  features, kept = session.features(images, look)
  assert features.shape == (len(images), 32) and kept.tolist() == list(range(len(images)))
  monkeypatch.setattr(s, "extract", lambda *_, **__: pytest.fail("taken again"))
  again, _ = session.features(images, look)
  np.testing.assert_array_equal(features, again)


def test_other_images_and_framings_have_other_features(session_of):
  session = session_of("AmsterTime")
  images = sorted((session.data / "new").iterdir())
  for own, size in ((images, 32), (images[:2], 32), (images, 24)):
    session.features(own, framing(session.prepare, size))
  assert len(list(session.cache.glob("*.npy"))) == 3


def test_damaged_images_are_left_out_and_named(session_of, tmp_path):
  session = session_of("AmsterTime")
  (tmp_path / "bad.png").write_text("no image")
  images = sorted((session.data / "new").iterdir())[:2]
  features, kept = session.features([images[0], tmp_path / "bad.png", images[1]],
                                    framing(session.prepare, 32))
  assert len(features) == 2 and kept.tolist() == [0, 2]
  assert [name.endswith("bad.png") for name in session.left_out] == [True]


def test_images_of_one_name_have_features_of_their_own(session_of, tmp_path):
  class Source:
    def name(self, index):
      return "the same"

    def __getitem__(self, index):
      if index == 1:
        raise DamagedImage("the same", "it is cut")
      return {"image": np.full((32, 32, 3), 60 * index, np.uint8)}

    def encoded(self, index):
      return bytes([index])

  class Other(Source):
    def name(self, index):
      return "another"

  session = session_of("AmsterTime")
  images = [Stored.of("x", source, i) for source, i in (
    (Source(), 0), (Source(), 2), (Other(), 1), (Source(), 3))]
  features, kept = session.features(images, framing(session.prepare, 32))
  assert kept.tolist() == [0, 1, 3] and list(session.left_out) == ["x/another"]
  assert len(np.unique(features, axis=0)) == 3


def test_a_stop_is_obeyed(session_of):
  session = session_of("AmsterTime", stop=lambda: True)
  with pytest.raises(Stopped):
    list(session.each([1, 2], "things"))


def test_patches(session_of):
  session = session_of("DAVIS")
  image = np.random.default_rng(0).integers(0, 255, (20, 30, 3), np.uint8)
  assert session.patches(image, 16, 32).shape == (2, 4, 32)
  np.testing.assert_allclose(session.patches(image[:16, :24]),
                             session.patches(image[:16, :24], 16, 24), atol=1e-6)


def test_devices_share_images(session_of):
  mesh = jax.make_mesh((4, 1, 1), ("data", "fsdp", "tensor"), (AxisType.Auto,) * 3,
                       devices=jax.devices()[:4])
  alone, session = session_of("DAVIS"), session_of("DAVIS")
  session.model = nnx.clone(alone.model)
  nnx.update(session.model, jax.device_put(nnx.state(alone.model), NamedSharding(mesh, P())))
  assert alone.mesh is None and session.mesh == mesh
  for count in (1, 6):  # fewer than devices, and no whole number for each
    images = np.random.default_rng(0).standard_normal((count, 16, 24, 3), np.float32)
    np.testing.assert_allclose(session.run(images), alone.run(images), atol=1e-5)
  paths = sorted((session.data / "JPEGImages/480p/clip0").iterdir())
  frames = [list(own.frames(paths, 16, 24)) for own in (session, alone)]
  assert len(frames[0]) == 5
  np.testing.assert_allclose(*map(np.stack, frames), atol=1e-5)


def test_a_limit_takes_of_everything(session_of):
  session = session_of("DAVIS", limit=3)
  assert session.some(list("aaabbbccc")) == ["a", "b", "c"]
  assert session.some("ab") == ["a", "b"]


def test_options(session_of):
  session = session_of("DAVIS", settings=dict(frames="8", ratio=0.5, flip="true", other=1))
  found, changed = session.options(frames=16, ratio=0.5, flip=False)
  assert vars(found) == dict(frames=8, ratio=0.5, flip=True)
  assert changed == ["frames = 8, not 16", "flip = True, not False"]
  for settings, said in ((dict(frames="many"), "frames=many must be int, like 16"),
                         (dict(flip="maybe"), "flip=maybe must be bool, like False")):
    with pytest.raises(ValueError, match=said):
      session_of("DAVIS", settings=settings).options(frames=16, flip=False)


def test_sizes_and_layouts(session_of):
  session = session_of("DAVIS", size=20)
  with pytest.raises(ValueError, match=r"a size of 20 is no whole number .* of 8: take --size 16"):
    session.side(512)
  with pytest.raises(s.LayoutError, match=r"has no Videos \(it has Annotations, .* wanted is that"):
    session.path("Videos", "that")
  with pytest.raises(s.LayoutError, match="it is empty or no folder"):
    session_of("nothing").path("x", "y")
  assert session_of("DAVIS").side(512) == 512 and s.whole(17, 8) == 24
