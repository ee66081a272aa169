import numpy as np
import pytest

from dinov3_jax.curation import seeding
from dinov3_jax.curation.rows import place


@pytest.mark.parametrize("k, candidates", [(16, 4), (16, 1), (100, 6)])
def test_agrees_with_the_recording(record, inputs, mesh, k, candidates):
  g = record("kmeanspp")
  rng = np.random.RandomState(inputs.SEED)
  first = rng.randint(len(inputs.POINTS))
  uniforms = np.stack([rng.uniform(size=candidates) for _ in range(k - 1)])
  chunk = place(inputs.POINTS, mesh)
  rows, potential = seeding.plus_plus(chunk, first, uniforms, mesh)
  np.testing.assert_array_equal(rows, g[f"indices_k{k}_t{candidates}"])
  assert potential == pytest.approx(float(g[f"potential_k{k}_t{candidates}"]), rel=1e-5)


def test_candidates_are_drawn_in_proportion_to_squared_distances(single):
  """Three places beside the first, at distances 1, 2 and 3: their shares are 1, 4 and 9 of 14."""
  x = np.array([[0.0], [1], [2], [3]]).repeat(200, 0)
  chunk = place(x, single)
  uniforms = np.linspace(0, 1, 140, endpoint=False)[:, None] + 1e-4
  found = [seeding.plus_plus(chunk, 0, u[None], single)[0][1] // 200 for u in uniforms]
  np.testing.assert_allclose(np.bincount(found, minlength=4), [0, 10, 40, 90], atol=1)


def test_rows_that_do_not_count_are_never_seeds(mesh):
  x = np.random.default_rng(0).normal(size=(40, 3))
  x[::2] = np.nan
  first, uniforms = seeding.draws(np.random.default_rng(1), 20, 20)
  rows, potential = seeding.plus_plus(place(x, mesh), 2 * first + 1, uniforms, mesh)
  assert sorted(rows) == list(range(1, 40, 2)) and potential < 1e-4
  # With nothing left to explain, rows are taken again.
  rows, _ = seeding.plus_plus(place(x[:4], mesh), 1, np.full((5, 2), 0.999), mesh)
  assert set(rows.tolist()) == {1, 3}


def test_goes_on_where_it_was_stopped(inputs, mesh, monkeypatch):
  monkeypatch.setattr(seeding, "PIECE", 8)
  chunk = place(inputs.POINTS, mesh)
  first, uniforms = seeding.draws(np.random.default_rng(1), 600, 30)
  seen = []
  whole = seeding.plus_plus(chunk, first, uniforms, mesh,
                            watch=lambda count, get: seen.append((count, get())))
  assert [count for count, _ in seen] == [9, 17, 25, 30]
  assert [len(progress.rows) for _, progress in seen] == [9, 17, 25, 30]
  for _, progress in seen:
    rows, potential = seeding.plus_plus(chunk, first, uniforms, mesh, done=progress)
    np.testing.assert_array_equal(rows, whole[0])
    assert potential == whole[1]


def test_trials():
  assert [seeding.trials(k) for k in (1, 2, 3, 16, 100, 100_000)] == [2, 2, 3, 4, 6, 13]
