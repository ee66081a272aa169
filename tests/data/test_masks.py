"""Exact counts of masked patches, and what the blocks look like."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dinov3_jax.data.masks import block_mask, mask_counts, masked_count, shard_masks


@pytest.mark.parametrize("images, size, expected", [
  (64, 224, 3771), (16, 256, 1274), (8, 512, 2659), (8, 768, 5987)])
def test_totals_of_the_reference(images, size, expected):
  assert masked_count(2 * images, (size // 16) ** 2) == expected


def test_counts_of_the_reference():
  counts = mask_counts(128, 196)
  assert counts[:7].tolist() == [20, 22, 23, 24, 25, 26, 28]
  assert counts[-2:].tolist() == [96, 98]
  assert len(counts) == 64 and counts.sum() == 3771


@pytest.mark.parametrize("probability, ratio", [(1.5, (0.1, 0.5)), (0.5, (0.5, 0.1)),
                                                (0.5, (-0.1, 0.5)), (0.5, (0.1, 1.1))])
def test_impossible_ratios_are_errors(probability, ratio):
  with pytest.raises(ValueError, match="must lie in"):
    mask_counts(8, 16, probability, ratio)


@settings(deadline=None, max_examples=100)
@given(grid=st.integers(1, 16), share=st.floats(0, 1), seed=st.integers(0, 2**31))
def test_block_masks_have_the_exact_count(grid, share, seed):
  count = int(share * grid**2)
  mask = block_mask(grid, count, np.random.default_rng(seed))
  assert mask.shape == (grid, grid) and mask.dtype == bool
  assert mask.sum() == count


def test_masks_are_blocks_and_not_noise():
  rng = np.random.default_rng(0)

  def neighbours(mask):
    """Pairs of masked patches side by side, a masked patch."""
    return ((mask[1:] & mask[:-1]).sum() + (mask[:, 1:] & mask[:, :-1]).sum()) / mask.sum()

  blocks = np.mean([neighbours(block_mask(14, 60, rng)) for _ in range(50)])
  noise = np.mean([neighbours(rng.permutation(196).reshape(14, 14) < 60) for _ in range(50)])
  assert blocks > 1.3 > 0.8 > noise


@settings(deadline=None, max_examples=40)
@given(images=st.integers(1, 9), grid=st.integers(2, 8), probability=st.floats(0, 1),
       low=st.floats(0, 0.5), spread=st.floats(0, 0.5), shift=st.booleans(),
       seed=st.integers(0, 2**31))
def test_shard_masks_keep_the_contract(images, grid, probability, low, spread, shift, seed):
  ratio = (low, low + spread)
  masks, indices, weights = shard_masks(np.random.default_rng(seed), images, grid, probability,
                                        ratio, shift)
  total = masked_count(2 * images, grid**2, probability, ratio)
  assert masks.shape == (images, 2, grid**2) and masks.dtype == bool
  assert indices.shape == weights.shape == (total,)
  assert indices.dtype == np.int32 and weights.dtype == np.float32
  np.testing.assert_array_equal(indices, np.flatnonzero(masks))
  counts = masks.reshape(2 * images, -1).sum(1)
  expected = np.sort(mask_counts(2 * images, grid**2, probability, ratio))
  np.testing.assert_array_equal(np.sort(counts)[2 * images - len(expected):], expected)
  if total:
    np.testing.assert_array_equal(weights, (1 / counts[indices // grid**2]).astype(np.float32))
    assert weights.sum() == pytest.approx((counts > 0).sum(), rel=1e-5)


def test_every_crop_can_be_masked_and_no_patch_is_left_out():
  rng = np.random.default_rng(0)
  masks = np.stack([shard_masks(rng, 4, 8)[0] for _ in range(200)])
  masked_crops = masks.any(-1).mean(0)
  np.testing.assert_allclose(masked_crops, 0.5, atol=0.12)
  assert masks.mean((0, 1, 2)).min() > 0.02


def test_circular_shift_evens_out_the_border():
  def spread(shift):
    rng = np.random.default_rng(0)
    share = np.mean([shard_masks(rng, 8, 8, circular_shift=shift)[0] for _ in range(80)], (0, 1, 2))
    return share.max() / share.min()

  assert spread(True) < 1.35 < spread(False)
