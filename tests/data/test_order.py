"""Draws: shares, homogeneous steps, passes, and that nothing moves when a source is added."""

import collections
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dinov3_jax.data.order import BlockShuffle, Mixed, Shuffle, order_of
from dinov3_jax.data.sources.mixture import Member, Mixture


class Counted:
  """A source of which the number of images matters alone."""

  labels = classes = None

  def __init__(self, count, blocks=None):
    self.count, self.blocks = count, blocks

  def __len__(self):
    return self.count


def mixture(**parts):
  return Mixture([Member(name, Counted(count), share, name.startswith("alone"))
                  for name, (count, share) in parts.items()])


PAPER = mixture(alone=(500, 0.1), big=(5000, 0.6), small=(700, 0.3), tiny=(3, 0.1))


def drawn(mixed, batch=20, steps=500):
  return np.array([[mixed(step, step * batch + i) for i in range(batch)] for step in range(steps)])


@pytest.fixture(scope="module")
def draws():
  return drawn(Mixed(PAPER, 7))


def test_one_step_in_ten_is_homogeneous(draws):
  parts = np.searchsorted(PAPER.starts, draws, side="right") - 1
  alone = (parts == 0).all(1)
  assert ((parts == 0).any(1) == alone).all()  # whole batches, or nothing
  error = np.sqrt(0.1 * 0.9 / len(alone))
  assert abs(alone.mean() - 0.1) < 3 * error


def test_shares_over_10_000_draws(draws):
  parts = np.searchsorted(PAPER.starts, draws, side="right") - 1
  mixed = parts[~(parts == 0).all(1)].ravel()
  assert draws.size == 10_000 and mixed.size > 8000
  for part, share in ((1, 0.6), (2, 0.3), (3, 0.1)):
    error = np.sqrt(share * (1 - share) / mixed.size)
    assert abs((mixed == part).mean() - share) < 3 * error


def test_draws_are_functions_of_seed_step_and_number(draws):
  again = pickle.loads(pickle.dumps(Mixed(PAPER, 7)))
  for step, i in ((499, 3), (0, 0), (123, 19), (122, 5)):  # in any order
    assert again(step, step * 20 + i) == draws[step, i]
  assert (drawn(Mixed(PAPER, 8), steps=5) != draws[:5]).any()


def test_a_source_that_is_added_moves_no_draw_between_the_others(draws):
  more = mixture(alone=(500, 0.1), big=(5000, 0.4), small=(700, 0.2), tiny=(3, 1 / 15),
                 new=(50, 1 / 3))
  after = drawn(Mixed(more, 7), steps=150)
  from_new = after >= more.starts[4]
  np.testing.assert_array_equal(after[~from_new], draws[:150][~from_new])
  assert abs(from_new.mean() - 0.9 / 3) < 0.04


def test_a_homogeneous_one_takes_from_mixed_steps_alone(draws):
  more = Mixture([*PAPER.members[:1], *PAPER.members[1:],
                  Member("alone too", Counted(90), 0.2, True)])
  after = drawn(Mixed(more, 7), steps=150)
  taken = (after >= more.starts[4]).all(1)
  np.testing.assert_array_equal(after[~taken], draws[:150][~taken])
  assert abs(taken.mean() - 0.2) < 3 * np.sqrt(0.2 * 0.8 / 150)


def test_no_image_comes_twice_before_its_part_could_be_through():
  mixed = Mixed(mixture(a=(300, 0.5), b=(1000, 0.5)), 0)
  first = [index for index in (mixed(0, n) for n in range(300)) if index < 300]
  assert len(set(first)) == len(first) > 100
  counts = collections.Counter(index for index in (mixed(0, n) for n in range(30_000))
                               if index < 300)
  assert len(counts) == 300 and min(counts.values()) > 25 and max(counts.values()) < 80


def test_what_stands_in_for_a_damaged_image_is_of_its_part():
  mixed = Mixed(PAPER, 0)
  assert mixed.after(499) == 0 and mixed.after(500) == 501 and mixed.after(6202) == 6200


def test_one_source_is_shuffled_as_ever():
  order = order_of(Counted(12), 5)
  assert isinstance(order, Shuffle)
  for turn in range(3):
    assert sorted(order(0, turn * 12 + i) for i in range(12)) == list(range(12))


@settings(max_examples=25, deadline=None)
@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=60), mixed=st.integers(1, 8),
       seed=st.integers(0, 2**32 - 1))
def test_blocks_are_read_a_few_at_a_time_and_passes_are_whole(sizes, mixed, seed):
  blocks = np.cumsum([0, *sizes])
  order = pickle.loads(pickle.dumps(BlockShuffle(blocks, seed, mixed)))
  for turn in range(2):
    images = [order(0, turn * blocks[-1] + i) for i in range(blocks[-1])]
    assert sorted(images) == list(range(blocks[-1]))
    of = (np.searchsorted(blocks, images, side="right") - 1).tolist()
    groups, at = [], 0
    while at < len(of):  # as many blocks as are mixed are finished before the next begins
      seen = set(of[at : at + 1])
      end = at
      while end < len(of) and (of[end] in seen or len(seen) < mixed):
        seen.add(of[end])
        end += 1
      assert sum(sizes[block] for block in seen) == end - at
      groups.append(seen)
      at = end
    assert sum(map(len, groups)) == len(sizes)


def test_few_blocks_are_shuffled_as_a_whole():
  assert isinstance(order_of(Counted(40, np.array([0, 7, 14, 40])), 0), Shuffle)
  assert isinstance(order_of(Counted(100, np.arange(101)), 0), BlockShuffle)
