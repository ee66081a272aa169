"""Folders, TFDS and what evaluations get from a source."""

import io
import pickle

import numpy as np
import pytest
from PIL import Image

from dinov3_jax.data.sources import DamagedImage, decode, eval_batches, hash_percent, open_source


def save(path, color=(10, 200, 30), size=(12, 9), **options):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.new("RGB", size, color).save(path, **options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  root = tmp_path_factory.mktemp("images")
  for i in range(30):
    for kind, suffix in (("cat", "jpg"), ("dog", "PNG"), ("deep/er", "webp")):
      save(root / kind / f"{i:02}.{suffix}", color=(8 * i, 100, 100))
  save(root / "loose.jpeg")
  save(root / ".hidden" / "a.png")
  save(root / "cat" / "._b.png")
  (root / "cat" / "notes.txt").write_text("no image")
  return root


def test_folder_has_labels_names_and_order(folder):
  source = open_source(str(folder), "all")
  assert len(source) == 91 and source.classes == ["cat", "deep", "dog"]
  names = [source[i]["name"] for i in range(len(source))]
  assert names == sorted(names) and names[0] == "cat/00.jpg" and names[-1] == "loose.jpeg"
  item = source[31]
  assert item["name"] == "deep/er/01.webp" and item["label"] == 1
  assert item["image"].shape == (9, 12, 3) and item["image"].dtype == np.uint8
  assert np.abs(item["image"][0, 0].astype(int) - (8, 100, 100)).max() < 6
  assert source.labels.tolist() == [source[i]["label"] for i in range(len(source))]
  assert source[90]["label"] == -1
  assert pickle.loads(pickle.dumps(source))[5]["name"] == names[5]


def test_held_out_images_depend_on_their_path_alone(folder):
  splits = {split: open_source(folder, split) for split in ("train", "val", "test")}
  names = {split: {source[i]["name"] for i in range(len(source))}
           for split, source in splits.items()}
  assert sum(map(len, names.values())) == 91 == len(set.union(*names.values()))
  assert all(len(part) > 0 for part in names.values())
  for name in names["val"]:
    assert hash_percent(name) < 5
  assert all(source.classes == ["cat", "deep", "dog"] for source in splits.values())


def test_hash_percent_is_uniform_and_stable():
  values = [hash_percent(f"n{i}.jpg") for i in range(5000)]
  assert np.histogram(values, 10, (0, 100))[0].min() > 400
  assert hash_percent("cat/00.jpg") == 35


def test_split_folders(tmp_path):
  for i in range(60):
    save(tmp_path / "train" / "ab"[i % 2] / f"{i}.png")
  save(tmp_path / "extra" / "x.png")
  train, val = (open_source(tmp_path, split) for split in ("train", "val"))
  assert len(train) + len(val) == 60 and 0 < len(val) < 12
  assert train.classes == val.classes == ["a", "b"]

  save(tmp_path / "val" / "b" / "0.png")
  save(tmp_path / "val" / "c" / "0.png")
  train, val = (open_source(tmp_path, split) for split in ("train", "val"))
  assert (len(train), len(val)) == (60, 2)
  assert train.classes == val.classes == ["a", "b", "c"] and val.labels.tolist() == [1, 2]
  assert len(open_source(tmp_path, "all")) == 62
  with pytest.raises(ValueError, match=r"'test'.*has the splits train, val"):
    open_source(tmp_path, "test")


def test_folder_without_classes(tmp_path):
  save(tmp_path / "one.png")
  source = open_source(tmp_path, "all")
  assert source.labels is None and source.classes is None and source[0]["label"] == -1


@pytest.mark.parametrize("spec, split, message", [
  ("nowhere", "train", "no folder of images at nowhere"), ("empty", "train", "no image below"),
  ("empty", "dev", "unknown split 'dev'"), ("one", "val", "none is held out")])
def test_errors_are_one_clear_line(tmp_path, monkeypatch, spec, split, message):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "empty").mkdir()
  save(tmp_path / "one" / "a.png")
  with pytest.raises(ValueError, match=message) as error:
    open_source(spec, split)
  assert "\n" not in str(error.value)


def encoded(image, **options):
  data = io.BytesIO()
  image.save(data, **options)
  return data.getvalue()


def test_decode_gives_rgb_whatever_the_mode():
  for mode in ("L", "P", "RGBA", "CMYK", "1", "LA"):
    data = encoded(Image.new("RGB", (5, 4), "white").convert(mode),
                   format="JPEG" if mode == "CMYK" else "PNG")
    image = decode(data, mode)
    assert image.shape == (4, 5, 3) and image.dtype == np.uint8 and (image > 250).all()


def test_decode_turns_photographs_upright():
  exif = Image.Exif()
  exif[0x0112] = 6  # the camera was turned: rows are columns
  wide = Image.new("RGB", (8, 4))
  assert decode(encoded(wide, format="JPEG", exif=exif), "x").shape == (8, 4, 3)


@pytest.mark.parametrize("make", [
  lambda whole: b"", lambda whole: b"GIF but not really", lambda whole: whole[: len(whole) // 2],
])
@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP"])
def test_damage_is_named(make, format_):
  noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
  with pytest.raises(DamagedImage, match=r"cat\.jpg cannot be read") as error:
    decode(make(encoded(Image.fromarray(noise), format=format_)), "cat.jpg")
  assert str(pickle.loads(pickle.dumps(error.value))) == str(error.value)


def test_eval_batches_see_every_image_once_and_skip_damaged_ones(tmp_path, caplog):
  for i in range(7):
    save(tmp_path / "ab"[i % 2] / f"{i}.png", color=(10 * i, 0, 0), size=(20, 30))
  (tmp_path / "a" / "1.png").write_bytes(b"broken")
  batches = list(eval_batches(open_source(tmp_path, "all"), 16, 3))
  assert [images.shape for images, _, _ in batches] == 3 * [(3, 16, 16, 3)]
  assert [len(names) for _, _, names in batches] == [3, 3, 1]
  names = [name for _, _, part in batches for name in part]
  assert names == ["a/0.png", "a/2.png", "a/4.png", "a/6.png", "b/1.png", "b/3.png", "b/5.png"]
  assert np.concatenate([labels for _, labels, _ in batches]).tolist() == [0, 0, 0, 0, 1, 1, 1]
  assert batches[1][0][:, 8, 8, 0].tolist() == [60, 10, 30]
  assert not batches[2][0][1:].any()
  assert "a/1.png" in caplog.text


def test_eval_batches_sample_a_limit_over_all_classes(folder):
  source = open_source(folder, "all")
  def labels(**options):
    return np.concatenate([part for _, part, _ in eval_batches(source, 8, 16, 30, **options)])
  assert len(labels()) == 30 and set(labels()) >= {0, 1, 2}
  np.testing.assert_array_equal(labels(), labels())
  assert (labels() != labels(seed=1)).any()


@pytest.fixture(scope="module")
def tfds_folder(tmp_path_factory):
  """A prepared data set; writing one needs no TensorFlow either."""
  import tensorflow_datasets as tfds

  class TinyShapes(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
      return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict({
        "image": tfds.features.Image(), "file_name": tfds.features.Text(),
        "label": tfds.features.ClassLabel(names=["round", "square"])}))

    def _split_generators(self, dl_manager):
      return {"train": self._generate_examples(40), "test": self._generate_examples(4)}

    def _generate_examples(self, count):
      for i in range(count):
        data = encoded(Image.new("RGB", (6, 8), (i, 0, 0)), format="PNG")
        data = b"broken" if i == 3 else data
        yield i, {"image": io.BytesIO(data), "label": i % 2, "file_name": f"{i}.png"}

  root = tmp_path_factory.mktemp("tfds")
  TinyShapes(data_dir=root, file_format="array_record").download_and_prepare()
  return root


def test_tfds(tfds_folder, monkeypatch):
  monkeypatch.setenv("TFDS_DATA_DIR", str(tfds_folder))
  sizes = {split: len(open_source("tfds:tiny_shapes", split))
           for split in ("train", "val", "test", "all")}
  assert sizes == {"train": 38, "val": 2, "test": 4, "all": 44}
  source = pickle.loads(pickle.dumps(open_source("tfds:tiny_shapes:1.0.0", "test")))
  assert source.classes == ["round", "square"] and source.labels is None
  damaged = 0
  for i in range(len(source)):
    try:
      item = source[i]
    except DamagedImage as error:
      damaged += 1
      assert error.name == "3.png"
      continue
    number = int(item["name"].removesuffix(".png"))
    assert item["label"] == number % 2
    np.testing.assert_array_equal(item["image"], np.full((8, 6, 3), (number, 0, 0)))
  assert damaged == 1


@pytest.mark.parametrize("name, message", [
  ("no_such_set", "cannot be opened"), ("tiny_shapes:9.0.0", "cannot be opened"),
  ("mnist", "is not prepared in .*tfds build mnist")])
def test_tfds_errors(tfds_folder, monkeypatch, name, message):
  monkeypatch.setenv("TFDS_DATA_DIR", str(tfds_folder))
  with pytest.raises(ValueError, match=f"tfds:{name} {message}") as error:
    open_source(f"tfds:{name}", "train")
  assert "\n" not in str(error.value)
