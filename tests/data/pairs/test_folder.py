import json

import pytest

from dinov3_jax.data.pairs.folder import folder_pairs


def by_name(pairs):
  return {item["name"]: item["captions"] for item in map(pairs.__getitem__, range(len(pairs)))}


def test_the_lines_of_a_text_are_the_captions_of_its_image(tmp_path, save_image, caplog):
  for name in ("a/cat", "b/dog", "b/bird", "b/fish", "b/cow"):
    save_image(name)
  (tmp_path / "a/cat.txt").write_text("a cat\nthe cat's eye\n")
  (tmp_path / "b/dog.txt").write_text("\ufeffein Hund", encoding="utf-8")
  (tmp_path / "b/bird.txt").write_text("")
  (tmp_path / "b/fish.txt").write_bytes(b"\xff\xfe\xff")
  pairs = folder_pairs(tmp_path, "all")
  assert by_name(pairs) == {"a/cat.png": ["a cat", "the cat's eye"], "b/dog.png": ["ein Hund"]}
  assert pairs.classes == ["a", "b"] and pairs.labels.tolist() == [0, 1]
  assert "left out 1 captions that are no text, 1 empty captions, 3 images without" in caplog.text


@pytest.mark.parametrize("name", ["captions.jsonl", "metadata.jsonl"])
def test_a_table_names_images_and_captions(tmp_path, save_image, caplog, name):
  for image in ("x/cat", "dog", "cow"):
    save_image(image)
  rows = [{"file_name": "x/cat.png", "caption": "a cat"},
          {"image": "./dog.png", "text": ["1", "2"]},
          {"file_name": "x/cat.png", "captions": ["another"]},
          {"image": "cow.png", "caption": None}, {"image": "gone.png", "caption": "gone"}]
  (tmp_path / name).write_text("\n".join(map(json.dumps, rows)) + "\n\n")
  (tmp_path / "cow.txt").write_text("not read, for there is a table")
  pairs = folder_pairs(tmp_path, "all")
  assert by_name(pairs) == {"dog.png": ["1", "2"], "x/cat.png": ["a cat", "another"]}
  assert "left out 1 captions that are no text, 1 captions without an image, 1 images" in (
    caplog.text)


@pytest.mark.parametrize("line", ["no json", "[]", '{"file_name": "a.png"}', '{"caption": "a"}'])
def test_a_line_that_is_no_caption_is_named(tmp_path, save_image, line):
  save_image("a")
  (tmp_path / "captions.jsonl").write_text('{"image": "a.png", "caption": "a"}\n' + line)
  with pytest.raises(ValueError, match=r"captions\.jsonl, line 2, is no caption: wanted is"):
    folder_pairs(tmp_path, "all")


def test_splits_are_those_of_the_folder(tmp_path, save_image):
  for name in ("train/a", "train/b", "val/c"):
    save_image(name)
    (tmp_path / f"{name}.txt").write_text(name)
  assert sorted(by_name(folder_pairs(tmp_path, "train"))) == ["train/a.png", "train/b.png"]
  assert by_name(folder_pairs(tmp_path, "val")) == {"val/c.png": ["val/c"]}
