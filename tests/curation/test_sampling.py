import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dinov3_jax.curation import sampling
from dinov3_jax.curation.tree import Level, Tree, make_level


def test_recorded_splits(record):
  for case in record("splits"):
    found = sampling.water_fill(np.array(case["sizes"]), case["target"], case["multiplier"])
    assert found.base.tolist() == case["base"], case
    assert found.remainder == case["remainder"]
    assert found.candidates.tolist() == case["candidates"]
    assert found.cut == case["cut"]
    whole = sampling.split(np.array(case["sizes"]), case["target"], case["multiplier"],
                           np.random.default_rng(0).uniform(size=len(case["sizes"])))
    assert whole.sum() == case["total"]
    more = whole - found.base
    assert set(np.flatnonzero(more)) <= set(case["candidates"]) and more.max() <= 1


def csr(lists):
  return Level(np.concatenate([np.array(x, int) for x in lists]),
               np.concatenate([[0], np.cumsum([len(x) for x in lists])]))


def test_recorded_toy(record):
  toy = record("toy_sampling")
  tree = Tree([csr(toy["level1"]), csr(toy["level2"])])
  for name, case in toy["samples"].items():
    target, multiplier = map(int, name.split("_"))
    seen = set()
    for seed in range(30):
      found = sampling.sample(tree, target, multiplier=multiplier, strategy="closest", seed=seed)
      assert found.given[0].tolist() in case["all_leaf_counts"]
      seen.add(tuple(found.given[0].tolist()))
      if case["determined"]:
        assert found.rows.tolist() == case["indices"]
    assert len(seen) == len(case["all_leaf_counts"])


@pytest.fixture(scope="module")
def tree(record):
  """The recorded tree, the order of its leaves as recorded."""
  g, s = record("resampling"), record("sampling")
  lowest = Level(s["leaf_order"].astype(int), np.concatenate([[0], np.cumsum(s["leaf_sizes"])]))
  np.testing.assert_array_equal(lowest.sizes, np.bincount(g["assign_1"]))
  above = []
  for i in (2, 3):
    assigned = g[f"assign_{i}"].astype(int)
    above.append(make_level(assigned, np.zeros(len(assigned)), len(g[f"centroids_{i}_0"])))
  return Tree([lowest, *above])


def cases(record):
  return [name.split("_") for name in record("sampling") if name[:3] in ("c_m", "r_m")]


def check_rule(tree, given, target, multiplier):
  """Each cluster's parts have what water-filling gives them, the remainder aside."""
  budgets = [(np.arange(len(given[-1])), len(given) - 1, target)]
  budgets += [(tree.levels[i].members(j), i - 1, given[i][j])
              for i in range(1, len(given)) for j in range(len(given[i]))]
  for parts, level, budget in budgets:
    if len(parts):
      found = sampling.water_fill(tree.flat_sizes[level][parts], budget, multiplier)
      more = given[level][parts] - found.base
      assert more.sum() == found.remainder and set(more) <= {0, 1}
      assert set(np.flatnonzero(more)) <= set(found.candidates)


def test_recorded_samples(record, tree):
  assert len(cases(record)) > 5
  for strategy, multiplier, target in cases(record):
    recorded = record("sampling")[f"{strategy}_{multiplier}_{target}"].astype(int)
    m, target = int(multiplier[1:]), int(target)
    # The rule as this project has it describes the recording ...
    check_rule(tree, [tree.counts(i, recorded) for i in range(3)], target, m)
    # ... and its own samples, which are as long.
    name = dict(c="closest", r="random")[strategy]
    found = sampling.sample(tree, target, multiplier=m, strategy=name, seed=3)
    assert len(found.rows) == len(recorded)
    for i in range(3):
      np.testing.assert_array_equal(tree.counts(i, found.rows), found.given[i])
    check_rule(tree, found.given, target, m)
    assert np.bincount(found.rows).max() <= m
    if strategy == "c":  # where a leaf gives as many, it gives the same
      counts = tree.counts(0, recorded)
      leaf = tree.cluster_of_rows(0, 2000)
      same = np.flatnonzero(counts == found.given[0])
      assert len(same) > 100
      ours, theirs = (np.sort(rows[np.isin(leaf[rows], same)]) for rows in (found.rows, recorded))
      np.testing.assert_array_equal(ours, theirs)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 500), st.integers(1, 3),
       st.sampled_from(sampling.STRATEGIES))
def test_any_tree(seed, target, multiplier, strategy):
  """Length, multiplicity and the rule hold, empty clusters at all levels included."""
  rng = np.random.default_rng(seed)
  sizes = [int(rng.integers(1, 120)), int(rng.integers(1, 30)), int(rng.integers(1, 6)), 3]
  tree = Tree([make_level(rng.integers(0, k, n), rng.uniform(size=n), k)
               for n, k in itertools.pairwise(sizes)])
  found = sampling.sample(tree, target, multiplier=multiplier, strategy=strategy, seed=seed)
  assert len(found.rows) == min(target, multiplier * sizes[0])
  assert np.bincount(found.rows).max(initial=0) <= multiplier
  check_rule(tree, found.given, target, multiplier)


def test_random_and_closest(tree):
  """Seeds draw other rows; the closest are the first of each cluster."""
  a, b, again = (sampling.sample(tree, 500, seed=seed).rows for seed in (0, 1, 0))
  np.testing.assert_array_equal(a, again)
  assert len(np.intersect1d(a, b)) < 400
  found = sampling.sample(tree, 500, strategy="closest")
  for leaf in range(300):
    count = found.given[0][leaf]
    assert set(tree.levels[0].members(leaf)[:count]) <= set(found.rows)


def test_random_keys_are_uniform():
  keys = sampling.random_keys(0, 1, np.arange(100_000)) / 2.0**64
  np.testing.assert_allclose(np.histogram(keys, 10, (0, 1))[0], 10_000, atol=400)
  assert abs(np.corrcoef(keys[:-1], keys[1:])[0, 1]) < 0.01
  other = sampling.random_keys(0, 2, np.arange(9)) / 2.0**64
  assert (other != keys[:9]).all()


def test_bad_arguments(tree):
  with pytest.raises(ValueError, match="must be positive, not 0 and 1"):
    sampling.sample(tree, 0)
  with pytest.raises(ValueError, match="unknown strategy 'furthest'; take random or closest"):
    sampling.sample(tree, 5, strategy="furthest")
