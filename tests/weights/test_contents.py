import gzip
import json
import re

import pytest

from dinov3_jax.weights.contents import is_count, is_number, read_json, reject_impostors, require

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"


@pytest.mark.parametrize("content, said", [
    (b"", "is empty: download it again"),
    (b"<!DOCTYPE html><html>", "is a web page, not what its name says: download it again"),
    (b"\xef\xbb\xbf \r\n<HTML lang=en>", "is a web page"),
    (b'<?xml version="1.0"?><Error><Code>AccessDenied', "is a web page"),
    (POINTER.encode(), "is a Git LFS pointer, not the file itself: run `git lfs pull`"),
    (gzip.compress(b"weights", mtime=0), "is a gzip archive: unpack it first"),
])
def test_impostors_are_named(tmp_path, content, said):
  path = tmp_path / "w.pth"
  path.write_bytes(content)
  with pytest.raises(ValueError, match=re.escape(f"{path} {said}")):
    reject_impostors(path)
  with pytest.raises(ValueError, match=re.escape(said)):
    read_json(path)


@pytest.mark.parametrize("content", [b"PK\3\4rest", b"\x80\x02}q", b'{"a": 1}', b"\0" * 9, b"<\0"])
def test_others_are_not_judged(tmp_path, content):
  (tmp_path / "w").write_bytes(content)
  reject_impostors(tmp_path / "w")


def test_a_json_object(tmp_path):
  (tmp_path / "a.json").write_text(json.dumps({"ä": [1, None]}))
  assert read_json(tmp_path / "a.json") == {"ä": [1, None]}


@pytest.mark.parametrize("content, said", [
    ("{", "is no valid JSON"), ("\0\0", "is no valid JSON"), ('{"a": 1} x', "is no valid JSON"),
    ("[" * 200_000, "is no valid JSON (it is nested too deep)"),
    ('{"a": ' + "9" * 5000 + "}", "is no valid JSON"),
    ("[1]", "holds no JSON object, but a list"), ('"a"', "holds no JSON object, but a text"),
    ("null", "holds no JSON object, but null"), ("3", "holds no JSON object, but a single value")])
def test_no_json_object(tmp_path, content, said):
  path = tmp_path / "a.json"
  path.write_text(content)
  with pytest.raises(ValueError, match=re.escape(f"{path} {said}")) as error:
    read_json(path)
  assert "\n" not in str(error.value)
  path.write_bytes(b"{\xff")
  with pytest.raises(ValueError, match=r"a\.json is no valid JSON"):
    read_json(path)


def test_values_of_a_document():
  assert [x for x in (1, 0, -1, 2**31, 10**400, True, 1.0, "1", None) if is_count(x)] == [1]
  assert is_count(0, least=0)
  numbers = [x for x in (0.5, -3, 1e31, 10**400, float("nan"), float("inf"), True, "1", None)
             if is_number(x)]
  assert numbers == [0.5, -3]
  assert require({}, "size", 3, is_count, "a count") == 3
  assert require({"size": 4}, "size", 3, is_count, "a count") == 4
  with pytest.raises(ValueError, match="size must be a count, not 'x"):
    require({"size": "x" * 10_000}, "size", 3, is_count, "a count")
