import pytest

from dinov3_jax.data.pairs import open_pairs


def test_openmoji_is_captioned_by_its_names():
  pairs = open_pairs("openmoji:base", "val")
  names = [pairs.captions[i] for i in range(len(pairs))]
  assert all(len(captions) == 1 for captions in names)
  assert not any(text.startswith("openmoji ") for (text,) in names)
  assert pairs[0]["captions"] == [pairs[0]["name"]]
  assert len(pairs.classes) == 10 and len(pairs.labels) == len(pairs)


def test_a_folder_and_coco_by_their_names(tmp_path, save_image):
  save_image("a")
  (tmp_path / "a.txt").write_text("a")
  assert open_pairs(tmp_path, "all")[0]["captions"] == ["a"]
  with pytest.raises(ValueError, match=r"annotations/captions_train2017\.json"):
    open_pairs(f"coco:{tmp_path}", "train")


def test_an_unknown_split():
  with pytest.raises(ValueError, match="unknown split 'dev'"):
    open_pairs("openmoji", "dev")
