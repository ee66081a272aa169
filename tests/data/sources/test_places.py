"""Paths, patterns and buckets."""

import fsspec
import pytest

from dinov3_jax.data.sources import places


def test_patterns(tmp_path):
  for name in ("a-08.tar", "a-09.tar", "a-10.tar", "b.tar"):
    (tmp_path / name).touch()
  at = lambda pattern: [path.removeprefix(f"{tmp_path}/") for path in places.expand(
    f"{tmp_path}/{pattern}")]
  assert at("a-{08..10}.tar") == ["a-08.tar", "a-09.tar", "a-10.tar"]
  assert at("a*.tar") == ["a-08.tar", "a-09.tar", "a-10.tar"] and at("b.tar") == ["b.tar"]
  with pytest.raises(ValueError, match=r"there is no file .*a-11\.tar"):
    at("a-{08..11}.tar")


def test_buckets_by_pattern_and_prefix():
  fs = fsspec.filesystem("memory")
  for name in ("one/a.tar", "one/b.tar", "one/deep/c.tar"):
    fs.pipe(f"/places/{name}", b"123")
  assert places.expand("memory://places/one/*.tar") == [
    "memory:///places/one/a.tar", "memory:///places/one/b.tar"]
  assert len(places.files_in("memory://places")) == 3
  assert places.mark("memory://places/one/a.tar")[0] == 3
  with places.open_file("memory://places/one/a.tar") as file:
    assert file.read() == b"123"


def test_marks_tell_a_change(tmp_path):
  path = tmp_path / "x"
  path.write_bytes(b"1")
  before = places.mark(str(path))
  path.write_bytes(b"22")
  assert places.mark(str(path)) != before


class Locked(fsspec.AbstractFileSystem):
  """A bucket whose contents may not be seen."""

  protocol = "locked"

  def ls(self, path, detail=True, **_):
    raise PermissionError("Access Denied")

  info = open = _open = find = glob = ls


@pytest.fixture
def locked():
  fsspec.register_implementation("locked", Locked, clobber=True)


@pytest.mark.parametrize("call", [places.mark, places.open_file, places.files_in,
                                  lambda path: places.expand(path + "/*.tar")])
def test_a_bucket_without_permission_is_one_line(locked, call):
  with pytest.raises(ValueError, match=r"locked://bucket\S* cannot be read: Access Denied; see "
                     "that these credentials may list and read it") as error:
    call("locked://bucket/x")
  assert "\n" not in str(error.value)


def test_a_missing_package_is_named():
  with pytest.raises(ValueError, match=r"needs a package that is missing .*dinov3_jax\[remote\]"):
    places.file_system("adl://x/y")
