"""Layouts of labelled data sets: names, classes and splits."""

import json
import pickle

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from dinov3_jax.evals import labelled_sets as sets
from dinov3_jax.evals.session import LayoutError


def write(root, files):
  """Files by their paths: text, bytes, a dict for .mat, or None for an empty one."""
  for name, content in files.items():
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, dict):
      savemat(path, content)
    elif isinstance(content, bytes):
      path.write_bytes(content)
    else:
      path.write_text(content or "")


def names(split, root):
  return [str(path.relative_to(root)) for path in split[0]]


def rows(*values):
  """A MATLAB array of structs."""
  return np.array([tuple(value.values()) for value in values],
                  [(key, object) for key in values[0]])


def inaturalist(year, place):
  """Two categories in another order than their numbers, whose images lie at `place(split, id)`."""
  files = {}
  for split, ids, labels in (("train", [4, 5], [1, 0]), ("val", [6], [0])):
    files[f"{split}{year}.json"] = json.dumps(dict(
      images=[dict(id=i, file_name=place(split, i)) for i in ids],
      annotations=[dict(image_id=i, category_id=label) for i, label in zip(ids, labels)],
      categories=[dict(id=1, name="Fungi"), dict(id=0, name="Aves")]))
    files |= {place(split, i): None for i in ids}
  return files


CASES = {
  "Food-101": (sets.TOP1, ["cake", "pie"], {
    "food-101/meta/train.txt": "pie/1\ncake/2\n", "food-101/meta/test.txt": "cake/3\n",
    **{f"food-101/images/{name}.jpg": None for name in ("pie/1", "cake/2", "cake/3")}}),
  "SUN397": (sets.TOP1, ["/a/abbey", "/a/airport/outdoor"], {
    "SUN397/ClassName.txt": "/a/abbey\n/a/airport/outdoor\n",
    "SUN397/Training_01.txt": "/a/airport/outdoor/s1.jpg\n/a/abbey/s2.jpg\n",
    "SUN397/Testing_01.txt": "/a/abbey/s3.jpg\n",
    **{f"SUN397/a/{name}.jpg": None for name in ("airport/outdoor/s1", "abbey/s2", "abbey/s3")}}),
  "Stanford Cars": (sets.TOP1, ["A", "B"], {
    "devkit/cars_meta.mat": dict(class_names=np.array(["A", "B"], object)),
    "devkit/cars_train_annos.mat": dict(annotations=rows({"fname": "1.jpg", "class": 2},
                                                         {"fname": "2.jpg", "class": 1})),
    "devkit/cars_test_annos_withlabels.mat": dict(annotations=rows({"fname": "1.jpg",
                                                                    "class": 1})),
    "cars_train/1.jpg": None, "cars_train/2.jpg": None, "cars_test/1.jpg": None}),
  "FGVC Aircraft": (sets.PER_CLASS, ["A 300", "B"], {
    "fgvc-aircraft-2013b/data/images_variant_trainval.txt": "11 B\n12 A 300\n",
    "fgvc-aircraft-2013b/data/images_variant_test.txt": "13 A 300\n",
    **{f"fgvc-aircraft-2013b/data/images/{i}.jpg": None for i in (11, 12, 13)}}),
  "DTD": (sets.TOP1, ["banded", "dotted"], {
    "dtd/labels/train1.txt": "dotted/a.jpg\n", "dtd/labels/val1.txt": "banded/b.jpg\n",
    "dtd/labels/test1.txt": "banded/c.jpg\n",
    **{f"dtd/images/{name}.jpg": None for name in ("dotted/a", "banded/b", "banded/c")}}),
  "Oxford Pets": (sets.PER_CLASS, ["Bengal", "great_pyrenees"], {
    "oxford-iiit-pet/annotations/trainval.txt": "# header\ngreat_pyrenees_10 2 2 1\nBengal_1 1 1 1",
    "oxford-iiit-pet/annotations/test.txt": "Bengal_2 1 1 1\n",
    **{f"oxford-iiit-pet/images/{name}.jpg": None
       for name in ("great_pyrenees_10", "Bengal_1", "Bengal_2")}}),
  "Flowers102": (sets.PER_CLASS, ["1", "2"], {
    "flowers-102/setid.mat": dict(trnid=[2], valid=[3], tstid=[1]),
    "flowers-102/imagelabels.mat": dict(labels=[1, 2, 1]),
    **{f"flowers-102/jpg/image_{i:05}.jpg": None for i in (1, 2, 3)}}),
  "CUB-200": (sets.TOP1, ["001.Tern", "002.Gull"], {
    "CUB_200_2011/images.txt": "1 a/1.jpg\n2 b/2.jpg\n3 a/3.jpg\n",
    "CUB_200_2011/image_class_labels.txt": "1 2\n2 1\n3 1\n",
    "CUB_200_2011/train_test_split.txt": "1 1\n2 1\n3 0\n",
    "CUB_200_2011/classes.txt": "1 001.Tern\n2 002.Gull\n",
    **{f"CUB_200_2011/images/{name}.jpg": None for name in ("a/1", "b/2", "a/3")}}),
  "Places205": (sets.TOP1, ["0", "1"], {
    "trainvalsplit_places205/train_places205.csv": "b/bar/1.jpg 1\na/abbey/2.jpg 0\n",
    "trainvalsplit_places205/val_places205.csv": "a/abbey/3.jpg 0\n",
    **{f"images256/{name}.jpg": None for name in ("b/bar/1", "a/abbey/2", "a/abbey/3")}}),
  "iNaturalist 2018": (sets.TOP1, ["Aves", "Fungi"], inaturalist(
      "2018", lambda split, i: f"train_val2018/Aves/{i}.jpg")),
  "iNaturalist 2021": (sets.TOP1, ["Aves", "Fungi"], inaturalist(
      "", lambda split, i: f"{split}/00001_Animalia_Aves/{i}.jpg")),
}


@pytest.mark.parametrize("name", CASES)
def test_two_training_images_and_one_of_the_test(session_of, tmp_path, name):
  """In all of them the first training image is of the second class, all others of the first."""
  metric, classes, files = CASES[name]
  write(tmp_path, files)
  found = sets.find(session_of(tmp_path))
  assert (found.name, found.metric, found.classes) == (name, metric, classes)
  assert found.train[1].tolist() == [1, 0] and found.test[1].tolist() == [0]
  assert len(set(names(found.train, tmp_path) + names(found.test, tmp_path))) == 3
  found.train[0][1].unlink()
  with pytest.raises(LayoutError, match="has no "):
    sets.find(session_of(tmp_path))


@pytest.mark.parametrize("text", ["[1, 2]", '{"images": []}', "{", '"\\ud800"'])
def test_other_files_beside_class_folders(session_of, tmp_path, text):
  """They make no data set of iNaturalist's, unless that of train is one."""
  write(tmp_path, {"train.json": text})
  assert sets.find_known(session_of(tmp_path)) is None
  with pytest.raises(LayoutError, match=r"holds no data set that is known \(it has train.json"):
    sets.find(session_of(tmp_path))
  write(tmp_path, CASES["iNaturalist 2021"][2] | {"val.json": text})
  with pytest.raises(LayoutError, match=r"val\.json is none of iNaturalist's files"):
    sets.find(session_of(tmp_path))


def write_cifar(root, image):
  """CIFAR-10 whose batches are these two images, or the first of them."""
  batch = lambda *labels: pickle.dumps({"data": image[:len(labels)].transpose(0, 3, 1, 2).reshape(
      len(labels), -1), "labels": list(labels)}, 2)
  folder = "cifar-10-batches-py"
  write(root, {f"{folder}/data_batch_{i}": batch(1, 0) for i in range(1, 6)} | {
    f"{folder}/test_batch": batch(1),
    f"{folder}/batches.meta": pickle.dumps({"label_names": ["cat", "dog"]}, 2)})


def test_cifar(session_of, tmp_path):
  image = np.random.default_rng(0).integers(0, 255, (2, 32, 32, 3), np.uint8)
  write_cifar(tmp_path, image)
  session = session_of(tmp_path)
  found = sets.find(session)
  assert found.name == "CIFAR-10" and found.classes == ["cat", "dog"]
  assert found.train[1].tolist() == [1, 0] * 5 and found.test[1].tolist() == [1]
  for path, own in zip(found.train[0], image):
    np.testing.assert_array_equal(np.asarray(Image.open(path)), own)
  times = [path.stat().st_mtime_ns for path in found.train[0]]
  assert [path.stat().st_mtime_ns for path in sets.find(session).train[0]] == times


def test_another_cifar_in_the_same_cache_has_its_own_images(session_of, tmp_path):
  for i in range(2):
    image = np.random.default_rng(i).integers(0, 255, (2, 32, 32, 3), np.uint8)
    write_cifar(tmp_path / str(i), image)
    found = sets.find(session_of(tmp_path / str(i)))
    for paths in (found.train[0], found.test[0]):
      np.testing.assert_array_equal(np.asarray(Image.open(paths[0])), image[0])


def test_several_labels_and_difficult_ones(session_of, tmp_path):
  root = "VOCdevkit/VOC2007"
  write(tmp_path, {
    f"{root}/ImageSets/Main/cat_trainval.txt": "000001  1\n000002 -1\n",
    f"{root}/ImageSets/Main/dog_trainval.txt": "000001  1\n000002  0\n",
    f"{root}/ImageSets/Main/cat_test.txt": "000003 -1\n",
    f"{root}/ImageSets/Main/dog_test.txt": "000003  0\n",
    **{f"{root}/JPEGImages/{i:06}.jpg": None for i in (1, 2, 3)}})
  found = sets.find(session_of(tmp_path))
  assert found.classes == ["cat", "dog"] and found.metric == sets.MAP
  assert found.train[1].tolist() == [[True, True], [False, False]]
  assert found.counted.tolist() == [[True, False]]
  (tmp_path / root / "ImageSets/Main/dog_test.txt").write_text("000001 1\n")
  with pytest.raises(LayoutError, match="do not name the same images"):
    sets.find(session_of(tmp_path))


def test_caltech_draws_its_training_set(session_of, tmp_path):
  write(tmp_path, {f"101_ObjectCategories/{name}/image_{i:04}.jpg": None
                   for name in ("ant", "BACKGROUND_Google", "yin_yang") for i in range(33)})
  found = sets.find(session_of(tmp_path))
  assert found.classes == ["ant", "yin_yang"]
  assert np.bincount(found.train[1]).tolist() == [30, 30]
  assert np.bincount(found.test[1]).tolist() == [3, 3]
  assert not set(found.train[0]) & set(found.test[0])


def test_unknown_sets_and_classes(session_of, tmp_path):
  with pytest.raises(LayoutError, match=r"holds no data set that is known \(it has Annotations"):
    sets.find(session_of("DAVIS"))
  _, _, files = CASES["Food-101"]
  write(tmp_path, files | {"food-101/meta/test.txt": "bun/3\n", "food-101/images/bun/3.jpg": None})
  with pytest.raises(LayoutError, match="name a class that is none"):
    sets.find(session_of(tmp_path))
  (tmp_path / "food-101/meta/test.txt").write_text("")
  with pytest.raises(LayoutError, match=r"Food-101 in .* has no images of the test set"):
    sets.find(session_of(tmp_path))
