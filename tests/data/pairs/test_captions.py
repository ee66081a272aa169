import collections
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dinov3_jax.data.pairs import captions as module
from dinov3_jax.data.pairs.captions import (
  EMPTY,
  NO_TEXT,
  Captions,
  drawn,
  lines_of,
  notes,
  of_object,
  usable,
)


@given(st.lists(st.lists(st.text(max_size=8), max_size=3), max_size=6))
def test_what_goes_in_comes_out(of_images):
  kept = pickle.loads(pickle.dumps(Captions(of_images)))
  assert [kept[i] for i in range(len(kept))] == of_images
  assert kept.count == sum(map(len, of_images))
  assert kept.sample(10**6) == [text for texts in of_images for text in texts]


def test_a_sample_is_evenly_spread():
  kept = Captions([[str(i)] for i in range(10)])
  assert kept.sample(5) == ["0", "2", "4", "6", "8"]


def test_what_says_nothing_is_counted():
  faults = collections.Counter()
  kept = usable(["a cat", "", " \n\t", None, 3, b"cat", ["a cat"], "two\nlines"], faults)
  assert kept == ["a cat", "two lines"]
  assert faults == {EMPTY: 2, NO_TEXT: 4}


def test_lines_of_a_text_file():
  assert lines_of("\ufeffa cat\r\nÄpfel\n".encode()) == ["a cat", "Äpfel"]
  assert lines_of(b"") == [""]  # an empty caption, which is counted
  assert lines_of(b"\xff") == [b"\xff"]  # no text, which is counted, too


@pytest.mark.parametrize("content, expected", [
  ({"caption": "a"}, ["a"]), ({"width": 3, "texts": ["a", "b"]}, ["a", "b"]), (["a"], ["a"]),
  ({"text": "b", "caption": "a"}, ["a"]), ({"caption": None}, [None])])
def test_captions_of_an_object(content, expected):
  assert of_object(content) == expected


@pytest.mark.parametrize("content", [{"width": 3}, "caption", 3, None])
def test_an_object_without_captions(content):
  with pytest.raises((KeyError, TypeError)):
    of_object(content)


def test_long_captions_and_other_scripts_are_told():
  encode = lambda text: text.split()
  told = notes(Captions([["a b c d"], ["a b"], ["кот"], ["été 3 €"]]), encode, 3)
  assert told == [
    "1 of 4 captions have more than 3 ids and are cut off there",
    "1 of 4 captions have letters other than Latin ones, which CLIP's vocabulary spells in bytes"]
  assert notes(Captions([["a b"]]), encode, 3) == []


def test_of_many_captions_some_are_looked_at(monkeypatch):
  monkeypatch.setattr(module, "LOOKED_AT", 2)
  told = notes(Captions([["a b"]] * 6), str.split, 1)
  assert told == ["2 of 2 captions looked at have more than 1 ids and are cut off there"]


def test_every_caption_is_drawn_in_its_turn():
  seen = {drawn(["a", "b", "c"], np.random.default_rng(i)) for i in range(30)}
  assert seen == {"a", "b", "c"}
