"""The walk below a folder: what is found, that it ends, and names that are not UTF-8."""

import collections
import json
import os
import time

import pytest

from dinov3_jax.data import walk
from dinov3_jax.data.walk import images_below, printable


def touch(*paths):
  for path in paths:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def found(folder):
  paths = list(images_below(folder))
  assert len(paths) == len(set(paths))
  return set(paths)


def test_images_at_any_depth_and_nothing_hidden(tmp_path):
  touch(*(tmp_path / name for name in (
    "a.png", "b/c.JPEG", "b/d/e.webp", "b/f.Jpg", ".g.png", ".h/i.png", "b/._f.jpg", "j.txt",
    "b/k.TIFF", "b/l.tiff", "m", "folder.png/n.jpg")))
  others = collections.Counter()
  assert set(images_below(tmp_path, others)) == {
    "a.png", "b/c.JPEG", "b/d/e.webp", "b/f.Jpg", "folder.png/n.jpg"}
  assert others == {".txt": 1, ".tiff": 2, "": 1}
  assert found(str(tmp_path)) == set(images_below(tmp_path))


def test_a_missing_folder_is_an_error(tmp_path):
  with pytest.raises(FileNotFoundError):
    list(images_below(tmp_path / "nowhere"))


def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch, caplog):
  touch(tmp_path / "a" / "1.png", tmp_path / "b" / "2.png")
  real = os.scandir

  def scandir(path):
    if os.path.basename(path) == "a":
      raise PermissionError(13, "Permission denied")
    return real(path)

  monkeypatch.setattr(os, "scandir", scandir)
  assert found(tmp_path) == {"b/2.png"}
  assert f"{tmp_path}/a cannot be read (Permission denied)" in caplog.text


def test_links_to_folders_and_files_are_followed(tmp_path):
  pool, root = tmp_path / "pool", tmp_path / "set"
  touch(pool / "cats" / "1.png", pool / "deep" / "er" / "2.png")
  root.mkdir()
  (root / "cat").symlink_to(pool / "cats")
  (root / "kitten").symlink_to(pool / "cats")  # a second name is no cycle
  (root / "deep").symlink_to(pool / "deep")
  (root / "one.png").symlink_to(pool / "cats" / "1.png")
  (root / "gone.png").symlink_to(pool / "nothing.png")  # to be named when it is read
  (root / "itself").symlink_to(root / "itself")
  assert found(root) == {"cat/1.png", "kitten/1.png", "deep/er/2.png", "one.png", "gone.png"}
  (tmp_path / "alias").symlink_to(root)
  assert found(tmp_path / "alias") == found(root)


def test_links_to_folders_above_are_not_followed(tmp_path):
  root = tmp_path / "set"
  for i in range(24):
    touch(root / "ab"[i % 2] / f"{i}.png")
  plain = found(root)
  touch(tmp_path / "beside.png")
  for name, target in (("self", root), ("over", tmp_path), ("a/up", root), ("a/again", root / "a"),
                       ("b/up", root), ("b/over", tmp_path)):
    (root / name).symlink_to(target)
  pool = tmp_path / "pool"
  touch(pool / "in" / "x.png", pool / "y.png")
  (pool / "in" / "up").symlink_to(pool)
  (root / "c").symlink_to(pool / "in")
  assert len(plain) == 24 and found(root) == plain | {"c/x.png"}


def test_classes_that_link_to_each_other_have_all_that_is_linked(tmp_path):
  names = "abc"
  for name in names:
    touch(tmp_path / name / f"{name}.png")
    for other in set(names) - {name}:
      (tmp_path / name / other).symlink_to(tmp_path / other)
  direct = {f"{a}/{a}.png" for a in names} | {
    f"{a}/{b}/{b}.png" for a in names for b in names if a != b}
  assert direct < found(tmp_path)


def test_many_links_end_soon(tmp_path, caplog):
  names = [f"{i:02}" for i in range(15)]  # there are 15! ways through them
  for name in names:
    touch(tmp_path / name / "x.png")
    for other in names:
      if other != name:
        (tmp_path / name / other).symlink_to(tmp_path / other)
  began = time.monotonic()
  paths = found(tmp_path)
  assert time.monotonic() - began < 20
  assert {f"{a}/x.png" for a in names} | {
    f"{a}/{b}/x.png" for a in names for b in names if a != b} <= paths
  assert len(paths) <= 15 + walk.REPEATS * 15 * 14
  assert "followed 8 times already" in caplog.text


def test_names_are_printable():
  assert printable("katze/übung 1.png") == "katze/übung 1.png"
  assert printable("back\\slash") == "back\\slash"
  broken = os.fsdecode(b"caf\xe9/a\nb.png")
  assert printable(broken) == r"caf\xe9/a\x0ab.png"
  assert printable("\ud800.png") == r"\ud800.png"
  assert json.dumps(printable(broken)) and printable(broken).encode()


def test_names_that_are_not_utf8_are_found(tmp_path):
  name = os.fsdecode(b"caf\xe9.png")
  try:
    touch(tmp_path / name)
  except OSError:
    pytest.skip("this file system takes UTF-8 alone")
  assert found(tmp_path) == {name}
  assert (tmp_path / name).exists() and printable(name) == r"caf\xe9.png"
