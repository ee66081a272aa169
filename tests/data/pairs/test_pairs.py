import pytest

from dinov3_jax.data.pairs import open_pairs


def test_openmoji_is_captioned_by_names_and_categories():
  pairs = open_pairs("openmoji:base", "val")
  for i, label in enumerate(pairs.labels):
    name, *more = pairs.captions[i]
    assert not name.startswith("openmoji ")
    category = pairs.classes[label].lower()
    assert more == ([f"{name}, {category}", category] if label >= 0 else [])
  assert pairs[0]["captions"][0] == pairs[0]["name"]
  assert len(pairs.classes) == 10


def test_a_folder_and_coco_by_their_names(tmp_path, save_image):
  save_image("a")
  (tmp_path / "a.txt").write_text("a")
  assert open_pairs(tmp_path, "all")[0]["captions"] == ["a"]
  with pytest.raises(ValueError, match=r"annotations/captions_train2017\.json"):
    open_pairs(f"coco:{tmp_path}", "train")


def test_an_unknown_split():
  with pytest.raises(ValueError, match="unknown split 'dev'"):
    open_pairs("openmoji", "dev")


@pytest.mark.parametrize("spec", ["zip:x.zip", "x.arrayrecord", "tfds:mnist", "manifest:list.txt"])
def test_sources_that_have_no_captions(spec):
  with pytest.raises(ValueError, match=f"no captions in {spec} that can be read: wanted is"):
    open_pairs(spec, "train")
