import json

import pytest

from dinov3_jax.data.pairs.coco import coco_pairs


def by_name(pairs):
  return {item["name"]: item["captions"] for item in map(pairs.__getitem__, range(len(pairs)))}


def write(path, content):
  path.parent.mkdir(exist_ok=True)
  path.write_text(json.dumps(content))


@pytest.fixture
def official(tmp_path, save_image):
  for part, first in (("train", 0), ("val", 2)):
    images = [dict(id=10 + i, file_name=f"{i}.png") for i in range(first, first + 2)]
    told = [dict(image_id=10 + first, caption="one"), dict(image_id=10 + first, caption="two"),
            dict(image_id=11 + first, caption="  ")]
    write(tmp_path / "annotations" / f"captions_{part}2017.json",
          dict(images=images, annotations=told))
    for i in range(first, first + 2):
      save_image(f"{part}2017/{i}.png")
  return tmp_path


def test_captions_as_coco_is_downloaded(official, caplog):
  assert by_name(coco_pairs(official, "train")) == {"train2017/0.png": ["one", "two"]}
  assert by_name(coco_pairs(official, "val")) == {"val2017/2.png": ["one", "two"]}
  assert len(coco_pairs(official, "all")) == 2
  assert "left out 1 empty captions, 1 images without a caption" in caplog.text


def test_the_test_split_has_no_captions(official):
  with pytest.raises(ValueError, match="has no captions for the split 'test': wanted is"):
    coco_pairs(official, "test")


def test_karpathys_splits(tmp_path, save_image):
  rows = [("train", "one"), ("restval", "two"), ("val", "three"), ("test", "four")]
  images = [dict(filename=f"{i}.png", filepath="val2014", split=split,
                 sentences=[dict(raw=text), dict(raw="again")])
            for i, (split, text) in enumerate(rows)]
  for i in range(4):
    save_image(f"val2014/{i}.png")
  write(tmp_path / "dataset_coco.json", dict(images=images))
  assert by_name(coco_pairs(tmp_path, "train")) == {
    "val2014/0.png": ["one", "again"], "val2014/1.png": ["two", "again"]}
  assert by_name(coco_pairs(tmp_path, "test")) == {"val2014/3.png": ["four", "again"]}
  assert len(coco_pairs(tmp_path, "all")) == 4


def test_flickr30ks_images_are_found_where_people_keep_them(tmp_path, save_image):
  save_image("flickr30k-images/1.png")
  write(tmp_path / "dataset_flickr30k.json", dict(images=[
    dict(filename="1.png", split="test", sentences=[dict(raw="a man")])]))
  assert by_name(coco_pairs(tmp_path, "test")) == {"flickr30k-images/1.png": ["a man"]}


@pytest.mark.parametrize("name", ["annotations/captions_train2017.json", "dataset_coco.json"])
@pytest.mark.parametrize("text", ["{", "[]", '{"images": [{}]}'])
def test_a_damaged_file_is_named(tmp_path, name, text):
  path = tmp_path / name
  path.parent.mkdir(exist_ok=True)
  path.write_text(text)
  with pytest.raises(ValueError, match=r"\.json is (damaged|no file of)"):
    coco_pairs(tmp_path, "train")
