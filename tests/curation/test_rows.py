import jax
import numpy as np
import pytest

from dinov3_jax.curation import rows


def test_every_device_has_as_many_rows_in_whole_blocks(mesh):
  for n in (1, 255, 257, 5000, 40_000):
    size = rows.padded(n, mesh)
    assert size >= n and size % (mesh.size * rows.row_block(n, mesh)) == 0
    assert rows.row_block(n, mesh) % rows.SEARCH == 0
  x = np.random.default_rng(0).normal(size=(300, 5))
  x[7, 1], x[9, 4] = np.nan, -np.inf
  chunk = rows.place(x, mesh, start=100, capacity=4000)
  assert chunk.x.shape == (rows.padded(4000, mesh), 5) and chunk.x.dtype == np.float32
  assert (chunk.start, chunk.rows) == (100, 300)
  valid = rows.fetch(chunk.valid)
  assert np.flatnonzero(~valid[:300]).tolist() == [7, 9] and not valid[300:].any()
  placed = rows.fetch(chunk.x)
  np.testing.assert_array_equal(placed[:7], x[:7].astype(np.float32))
  assert np.isfinite(placed).all() and not placed[[7, 9]].any()
  assert {shard.data.shape[0] for shard in chunk.x.addressable_shards} == {
    len(placed) // mesh.size}


def test_integers_become_float32_and_one_dimension_is_an_error(single):
  assert rows.place(np.arange(6).reshape(3, 2), single).x.dtype == np.float32
  with pytest.raises(ValueError, match=r"must be \[rows, dimensions\], not \[3\]"):
    rows.place(np.zeros(3), single)


def test_points_in_memory(inputs):
  mesh = rows.make_mesh()
  assert mesh.size == len(jax.devices())
  points = rows.ArrayPoints(inputs.POINTS, mesh)
  assert (points.rows, points.dim) == inputs.POINTS.shape and points.sizes() == [points.rows]
  assert len(list(points.chunks())) == 1 and not list(points.chunks(1))
  np.testing.assert_array_equal(points.take(np.array([5, 2])), inputs.POINTS[[5, 2]])
