import json
import sys

import numpy as np
import pytest

from dinov3_jax.curation import results
from dinov3_jax.curation.hierarchy import Clusters
from dinov3_jax.curation.kmeans import Assignment


def test_what_a_step_leaves(curation, monkeypatch):
  monkeypatch.setattr(sys, "argv", ["/x/dinov3_jax/curate.py", "sample", "--dir", "c"])
  store = results.open_store(curation)
  work = results.begin(curation, "some", "sample", dict(target=3))
  with pytest.raises(ValueError, match="some has no result: run the step of this name first"):
    results.read_rows(curation, "some")
  assert results.all_results(curation) == {}
  summary = results.finish(work, dict(different=2), store, np.array([5, 5, 399]))
  assert summary == dict(rows=3, different=2)
  assert results.read_rows(curation, "some").tolist() == [5, 5, 399]
  assert (curation / "some" / "names.txt").read_text() == "5.jpg\n5.jpg\n399.jpg\n"
  found = results.all_results(curation)
  assert found["some"]["job"] == dict(step="sample", target=3)
  assert found["some"]["command"] == "python -m dinov3_jax.curate sample --dir c"
  results.finish(results.begin(curation, "none", "mix", {}), dict(parts=[]))
  assert list(results.all_results(curation)) == ["some", "none"]
  with pytest.raises(ValueError, match="none is a step that chooses no rows"):
    results.read_rows(curation, "none")
  with pytest.raises(ValueError, match=r"made with other settings \(target\)"):
    results.begin(curation, "some", "sample", dict(target=4))


def test_names_that_are_no_folders(curation):
  for name in ("features", "", "..", "a/b", "a b"):
    with pytest.raises(ValueError, match="cannot name a result"):
      results.begin(curation, name, "sample", {})


def test_trees(curation):
  """Rows of a part of the features keep their numbers; a file that is cut is named."""
  work = results.begin(curation, "t", "cluster", {})
  lowest = Clusters(np.zeros((2, 8)), Assignment(np.array([1, 0, 1]), np.zeros(3)))
  above = Clusters(np.zeros((1, 8)), Assignment(np.array([0, 0]), np.zeros(2)))
  for i, level in enumerate((lowest, above), 1):
    work.array(f"level{i}/centroids", lambda level=level: level.centroids)
  tree = results.write_tree(work, [lowest, above], np.array([7, 9, 30]))
  results.finish(work, dict(levels=[0, 0]))
  again, centroids = results.read_tree(curation, "t")
  assert [level.ids.tolist() for level in again.levels] == [[9, 7, 30], [0, 1]]
  assert [level.ids.tolist() for level in tree.levels] == [[9, 7, 30], [0, 1]]
  assert [c.shape for c in centroids] == [(2, 8), (1, 8)]
  file = curation / "t" / "level2" / "ids.npy"
  file.write_bytes(file.read_bytes()[:-4])
  with pytest.raises(ValueError, match=r"ids\.npy is cut.*makes only what is not whole"):
    results.read_tree(curation, "t")
  note = curation / "t" / "job.json"
  note.write_text(json.dumps(dict(step="sample")))
  with pytest.raises(ValueError, match="is no clustering but what `sample` made"):
    results.read_tree(curation, "t")
