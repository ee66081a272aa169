"""Roads with depth, in KITTI's layout."""

import numpy as np

from dinov3_jax.evals import depth_maps, mini_roads
from dinov3_jax.evals.tasks import kitti


def test_the_layout(mini_data, session_of):
  pairs = kitti.read_list(session_of("KITTI"), kitti.LISTS[0])
  assert len(pairs) == 3  # and one without depth
  metres = depth_maps.read_depth(pairs[0][1], kitti.UNIT)
  assert metres.shape == (94, 310) and metres[metres > 0].min() > 0 and metres.max() < 90
  assert 0.1 < (metres > 0).mean() < 0.3
  assert not metres[:31].any()


def test_the_road_lies_where_its_depth_says(shapes):
  image, depth = mini_roads.road(shapes, np.random.default_rng(0))
  assert image.shape == (94, 310, 3) and depth.dtype == np.float32
  rows = np.arange(80, 94)
  expected = mini_roads.FOCAL * mini_roads.ABOVE / (rows + 0.5 - 47)
  np.testing.assert_allclose(np.median(depth[rows][:, 130:180], 1), expected, rtol=1e-5)
  assert depth[:, 0].max() < 12 and depth.max() <= mini_roads.FARTHEST  # houses are beside it
