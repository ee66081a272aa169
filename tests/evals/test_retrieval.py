"""Rankings and average precisions against recorded figures."""

import numpy as np
import pytest

from dinov3_jax.evals import retrieval


@pytest.fixture(scope="module")
def oxford(golden):
  arrays = golden("evals/revisitop")
  lists = {}
  for name in ("easy", "hard", "junk"):
    lists[name] = np.split(arrays[f"gnd_{name}"], np.cumsum(arrays[f"gnd_{name}_len"])[:-1])
  truth = [dict(zip(lists, own)) for own in zip(*lists.values())]
  return arrays, truth


def test_ranks(oxford):
  arrays, _ = oxford
  ranks = retrieval.rank(arrays["queries"], arrays["database"], "dot")
  np.testing.assert_array_equal(ranks, arrays["ranks"])


@pytest.mark.parametrize("protocol", ["easy", "medium", "hard"])
def test_revisited(oxford, protocol):
  arrays, truth = oxford
  result = retrieval.revisited(arrays["ranks"], truth, protocol, arrays["kappas"].tolist())
  assert result["map"] == pytest.approx(float(arrays[f"{protocol}_map"]), abs=1e-6)
  for ours, theirs in (("average_precision", "aps"), ("precision", "mpr")):
    np.testing.assert_allclose(result[ours], arrays[f"{protocol}_{theirs}"], atol=1e-6)
  filled = ~np.isnan(result["average_precision"])
  np.testing.assert_allclose(result["precision_of"][filled], arrays[f"{protocol}_prs"][filled],
                             atol=1e-6)


@pytest.mark.parametrize("metric", ["cosine", "l2"])
@pytest.mark.parametrize("k", [1, 5, 30])
def test_amstertime(recorded, metric, k):
  record = recorded("amstertime")
  result = retrieval.amstertime(np.array(record["new"]), np.array(record["old"]), k, metric)
  for queries, (mean, top1, top5) in record["results"][f"{metric}_k{k}"].items():
    assert result[queries]["map"] == pytest.approx(mean, abs=1e-6)
    assert result[queries]["top1"] == pytest.approx(top1, abs=1e-6)
    assert ("top5" in result[queries]) == (k >= 5)
    if k >= 5:
      assert result[queries]["top5"] == pytest.approx(top5, abs=1e-6)


def test_whole_ranking_is_the_default(recorded):
  record = recorded("amstertime")
  new, old = np.array(record["new"]), np.array(record["old"])
  assert retrieval.amstertime(new, old) == retrieval.amstertime(new, old, k=len(new))


def test_a_perfect_ranking_has_a_precision_of_one():
  assert retrieval.trapezoid_precision(np.arange(4), 4) == 1


def test_bad_input():
  x = np.ones((2, 3))
  with pytest.raises(ValueError, match="do not fit"):
    retrieval.rank(x, np.ones((2, 4)))
  with pytest.raises(ValueError, match="cosine, dot or l2"):
    retrieval.rank(x, x, "cos")
  with pytest.raises(ValueError, match="not all finite"):
    retrieval.rank(np.full((1, 3), np.nan), x)
  with pytest.raises(ValueError, match="easy, medium, hard"):
    retrieval.revisited(np.zeros((1, 1), int), [{}], "all")
  with pytest.raises(ValueError, match="1 rankings, but 0 queries"):
    retrieval.revisited(np.zeros((1, 1), int), [], "easy")
  with pytest.raises(ValueError, match="no query has a positive"):
    retrieval.revisited(np.zeros((1, 1), int), [dict(easy=[], hard=[], junk=[])], "easy")
  with pytest.raises(ValueError, match="2 new photographs, but 1 old"):
    retrieval.amstertime(x, x[:1])
