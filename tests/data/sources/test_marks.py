"""Whether images are the same as before."""

import os
import types

import pytest

from dinov3_jax.data.sources import open_source
from dinov3_jax.data.sources.marks import NONE, check_marks, check_names, digest, mark, marks
from dinov3_jax.data.sources.mixture import Member, Mixture
from dinov3_jax.data.sources.subset import Subset
from tests.data.conftest import KINDS, below

ANEW = "start anew"


@pytest.mark.parametrize("kind", ["folder", *KINDS])
def test_all_sources_know_of_what_their_images_are(same, images, kind):
  source = open_source(images if kind == "folder" else same(kind), "all")
  found = marks(source, range(len(source)))
  assert len(found) == 40 and found[0] == mark(source, 0) and all(size > 0 for size, _ in found)
  part = Subset(source, [3, 1])
  both = Mixture([Member("a", source, 0.5), Member("b", part, 0.5)])
  assert marks(both, [40, 41, 0]) == [found[3], found[1], found[0]]
  if kind in ("folder", "manifest"):
    sizes = [path.stat().st_size for path in below(images).values()]
    assert sorted(size for size, _ in found) == sorted(sizes)


def test_a_file_that_changes_or_goes(tmp_path, images):
  for name, path in below(images).items():
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(path.read_bytes())
  (tmp_path / "list.csv").write_text("".join(f"{name}\n" for name in below(images)))
  for spec in (tmp_path, f"manifest:{tmp_path}/list.csv"):
    source = open_source(spec, "all")
    known = digest(marks(source, range(40)))
    assert check_marks(source, range(40), known, "x", ANEW) == marks(source, range(40))
    path = tmp_path / next(iter(below(images)))
    os.utime(path, ns=(0, mark(source, 0)[1] + 1))
    with pytest.raises(ValueError, match=r"x has images that have changed since they were read, "
                       "among a/00.png to b/39.png: start anew"):
      check_marks(source, range(40), known, "x", ANEW)
    assert len(check_marks(source, range(40), None, "x", ANEW)) == 40
  path.unlink()
  assert mark(source, 0) == NONE == mark(object(), 0) == marks(object(), [0])[0]


@pytest.mark.parametrize("now, message", [
  ("abcde", None), ("abcd", None), ("abxde", "x where d was"), ("bcdef", "b where a was"),
  ("abcdf", "f where none was"), ("abcec", "d is not where it was")])
def test_names(now, message):
  """Of a, b and d; c and e were damaged."""
  source = types.SimpleNamespace(name=lambda i: now[i])
  check = lambda: check_names(source, range(len(now)), ["a", "b", "d"], "ce", "s", ANEW)
  if message is None:
    assert check() == [0, 1, 3]
    return
  with pytest.raises(ValueError, match=rf"s has other images than before .{message}.: start anew"):
    check()
