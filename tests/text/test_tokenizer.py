import json
import pathlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dinov3_jax.text import tokenizer as module
from dinov3_jax.text.tokenizer import CONTEXT, END, START, VOCABULARY, Tokenizer

RECORD = json.loads((pathlib.Path(__file__).parents[1] / "golden" / "tokens.json").read_text())


@pytest.fixture(scope="module")
def tokenizer():
  return Tokenizer()


@pytest.mark.parametrize("caption", RECORD["captions"], ids=lambda c: c["text"][:20])
def test_every_id_is_the_recorded_one(tokenizer, caption):
  row = tokenizer(caption["text"])[0]
  expected = np.zeros(CONTEXT, np.int32)
  expected[:len(caption["ids"])] = caption["ids"]
  np.testing.assert_array_equal(row, expected)
  assert len(tokenizer.encode(caption["text"])) == caption["full_length"]


@pytest.mark.parametrize("row", RECORD["other_context_lengths"], ids=lambda row: row["text"])
def test_other_contexts(tokenizer, row):
  assert tokenizer(row["text"], row["context_length"])[0].tolist() == row["ids"]


@pytest.mark.parametrize("row", RECORD["decoded"], ids=lambda row: row["text"])
def test_ids_back_to_text(tokenizer, row):
  assert tokenizer.decode(row["ids"]) == row["text"]


def test_the_vocabulary_has_the_recorded_size():
  _, ids = module._vocabulary()
  assert len(ids) == VOCABULARY == RECORD["vocab_size"]
  assert (ids["<|startoftext|>"], ids["<|endoftext|>"]) == (START, END)
  assert (RECORD["start"], RECORD["end"]) == (START, END)


@given(st.text(max_size=40))
def test_any_text_survives_but_for_case_and_spaces(text):
  tokenizer = Tokenizer()
  ids = tokenizer.encode(text)
  assert ids[0] == START and ids[-1] == END and max(ids) < VOCABULARY
  decoded = tokenizer.decode(ids[1:-1])
  assert decoded.replace(" ", "") == "".join(tokenizer.clean(text).split())


def test_a_batch_has_a_row_for_each_caption(tokenizer):
  rows = tokenizer(["a cat", "", "a dog " * 60])
  assert rows.shape == (3, CONTEXT) and rows.dtype == np.int32
  assert rows[1].tolist() == [START, END, *[0] * (CONTEXT - 2)]
  assert rows[2, -1] == END and (rows[2] > 0).all()
  assert (rows.argmax(-1) == [3, 1, CONTEXT - 1]).all()


@pytest.mark.parametrize("bad", [None, 3, b"a cat", ["a cat"]], ids=repr)
def test_what_is_no_text_is_refused(tokenizer, bad):
  with pytest.raises(ValueError, match="a caption must be text, not "):
    tokenizer([bad])


def test_a_context_without_room_is_refused(tokenizer):
  with pytest.raises(ValueError, match="context of 1"):
    tokenizer("a cat", 1)
