import chex
import jax.numpy as jnp
import numpy as np
import pytest

from dinov3_jax.evals import classification, knn


def clusters(n, rng, centres, spread):
  labels = rng.integers(len(centres), size=n)
  return (centres[labels] + spread * rng.normal(size=(n, centres.shape[1]))).astype("f4"), labels


def by_hand(train, train_labels, test, test_labels, ks, temperature, classes):
  """The protocol query by query, in float64."""
  unit = lambda x: x.astype("f8") / np.linalg.norm(x.astype("f8"), axis=1, keepdims=True)
  train, test = unit(train), unit(test)
  hits = {k: np.zeros(2) for k in ks}
  for x, y in zip(test, test_labels):
    similarity = train @ x
    order = np.argsort(-similarity, kind="stable")[:max(ks)]
    weights = np.exp(similarity[order] / temperature)
    for k in ks:
      votes = np.zeros(classes)
      for index, weight in list(zip(order, weights))[:k]:
        votes[train_labels[index]] += weight
      ranked = np.argsort(-votes, kind="stable")
      hits[k] += [y == ranked[0], y in ranked[:5]]
  return {k: dict(zip(("top1", "top5"), hit / len(test))) for k, hit in hits.items()}


@pytest.fixture(scope="module")
def problem():
  rng = np.random.default_rng(0)
  centres = rng.normal(size=(12, 16))
  return *clusters(240, rng, centres, 1.5), *clusters(101, rng, centres, 1.5)


def test_agrees_with_the_protocol_by_hand(problem, monkeypatch):
  expected = by_hand(*problem, (1, 5, 20), 0.07, 12)
  assert 0.2 < expected[20]["top1"] < expected[20]["top5"] < 1
  assert expected[1]["top1"] != expected[20]["top1"]
  chex.assert_trees_all_close(knn.knn_accuracy(*problem, k=(20, 1, 5)), expected, atol=1e-6)
  monkeypatch.setattr(knn, "SIMILARITIES", 240 * 7)  # chunks that do not divide the queries
  chex.assert_trees_all_close(knn.knn_accuracy(*problem, k=(20, 1, 5)), expected, atol=1e-6)


def test_temperature_and_length_of_features(problem):
  train, train_labels, test, test_labels = problem
  warm = by_hand(*problem, (20,), 1.0, 12)
  assert warm != by_hand(*problem, (20,), 0.07, 12)
  lengths = np.linspace(0.1, 9, len(train), dtype="f4")[:, None]
  got = knn.knn_accuracy(train * lengths, train_labels, test * 3, test_labels, 20, 1.0, 40)
  chex.assert_trees_all_close(got, warm, atol=1e-6)


def test_votes_that_tie_do_not_count_as_right():
  bank = jnp.eye(8)
  labels = np.zeros(8, int)
  queries, own = jnp.eye(8), np.full(8, 7)
  assert knn.knn_accuracy(bank, labels, queries, own, k=3) == {3: {"top1": 0.0, "top5": 0.0}}


def test_a_k_above_the_bank_is_cut_to_it(problem):
  got = knn.knn_accuracy(*problem, k=(5, 240, 241, 1000))
  assert list(got) == [5, 240, 241, 1000]
  assert got[1000] == got[241] == got[240] == knn.knn_accuracy(*problem, k=240)[240]
  assert got[5] == knn.knn_accuracy(*problem, k=5)[5]


def test_finds_itself_in_bfloat16(problem):
  train, labels = jnp.asarray(problem[0], jnp.bfloat16), problem[1]
  assert knn.knn_accuracy(train, labels, train, labels, k=1)[1]["top1"] == 1


@pytest.mark.parametrize("change, message", [
  (dict(k=0), r"k-NN needs a k \(evals.knn_k\) of at least 1, not 0"),
  (dict(k=(5, -1)), "of at least 1"),
  (dict(k=()), "of at least 1"),
  (dict(num_classes=3), "out of range"),
  (dict(train_labels=np.full(240, -1)), "without a label"),
  (dict(test_labels=np.zeros(3, int)), r"\[N, D\]"),
  (dict(test_features=np.ones((101, 4), "f4")), "one model"),
  (dict(test_features=np.full((101, 16), np.nan, "f4")), "finite"),
])
def test_bad_input(problem, change, message):
  names = ("train_features", "train_labels", "test_features", "test_labels")
  with pytest.raises(ValueError, match=message):
    knn.knn_accuracy(**{**dict(zip(names, problem)), **change})


def test_raw_pixels():
  red, blue = np.zeros((40, 60, 3), "u1"), np.zeros((8, 8, 3), "u1")
  red[..., 0], blue[..., 2] = 255, 51
  features = knn.raw_pixels([red, blue], size=4)
  assert features.shape == (2, 48) and features.dtype == np.float32
  np.testing.assert_allclose(features.reshape(2, 16, 3)[:, 0], [[1, 0, 0], [0, 0, 0.2]])
  batch = np.random.default_rng(0).integers(256, size=(2, 32, 32, 3), dtype="u1")
  np.testing.assert_allclose(knn.raw_pixels(batch), batch.reshape(2, -1) / 255.0, rtol=1e-6)


@pytest.mark.parametrize("skip", [0, 1])
def test_recorded_votes(golden, recorded, skip):
  arrays, figures = golden("evals/knn"), recorded("knn_accuracy")["accuracy"]
  ks = (1, 10, 20, 100, 200)
  # With the nearest one skipped, images of the bank itself are the queries.
  queries, labels = (arrays[name][:80] for name in (
      ("train", "train_labels") if skip else ("test", "test_labels")))
  for temperature in (0.07, 0.5):
    votes = knn.knn_votes(arrays["train"], arrays["train_labels"], queries, ks, temperature,
                          num_classes=7, skip=skip)
    for k in ks:
      if temperature == 0.07:
        np.testing.assert_allclose(votes[k], arrays[f"probs_skip{skip}_k{k}"], atol=2e-5)
      record = figures.get(f"T{temperature}_skip{skip}_k{k}")
      if record:
        for name, value in (
            ("top1", classification.accuracy(votes[k], labels)),
            ("per_class_top1", classification.accuracy_per_class(votes[k], labels))):
          assert 100 * value == pytest.approx(record[name], abs=1e-4)
        if k >= 100:  # where fewer neighbours vote, classes without a vote are among the first 5
          assert 100 * classification.accuracy(votes[k], labels, 5) == pytest.approx(
              record["top5"], abs=1e-4)


def test_long_lists_are_cut(golden, recorded):
  arrays = golden("evals/knn")
  votes = knn.knn_votes(arrays["train"], arrays["train_labels"], arrays["test"],
                        (10, 20, 100, 200, 1000))
  cut = recorded("knn_accuracy")["ks_of_10_20_100_200_1000_with_300_train"]
  assert cut[-1] == len(arrays["train"])
  np.testing.assert_allclose(votes[1000].sum(1), 1, atol=1e-5)
  with pytest.raises(ValueError, match="a neighbour to vote"):
    knn.knn_votes(arrays["train"][:1], [0], arrays["test"], (1,), skip=1)
