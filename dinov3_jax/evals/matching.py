"""Matches between two images by their patch features, and how far off they are."""


import jax
import jax.numpy as jnp
import numpy as np

CHUNK = 2048  # source features that are compared with all target ones at once


def nearest(source, target) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Each source feature's most similar target feature.

  Args:
    source: [N, D].
    target: [M, D], M of at least 2.

  Returns:
    Its place, int32 [N]; its cosine, and the second largest cosine, float32 [N].

  Raises:
    ValueError: shapes that do not fit.
  """
  if np.ndim(source) != 2 or np.ndim(target) != 2 or len(target) < 2 or not len(source):
    raise ValueError(f"matching needs source features [N, D] and two target features or more, not "
                     f"{np.shape(source)} and {np.shape(target)}")
  target = _unit(jnp.asarray(target, jnp.float32))
  parts = [_nearest(jnp.asarray(source[i:i + CHUNK], jnp.float32), target)
           for i in range(0, len(source), CHUNK)]
  return tuple(np.concatenate(x) for x in zip(*parts))


def best(first: np.ndarray, second: np.ndarray, count: int, by: str = "ratio") -> np.ndarray:
  """The places of the surest matches, surest first.

  Args:
    first, second: cosines, as from `nearest`.
    count: how many; cut to their number.
    by: "ratio", Lowe's test 1 - d1/d2 with cosine distances d = 1 - cos, which Probe3D's code
      takes; or "cosine", which the paper states.
  """
  if by not in ("ratio", "cosine"):
    raise ValueError(f'matches are chosen by "ratio" or "cosine", not {by!r}')
  weight = first if by == "cosine" else ratio(first, second)
  return np.argsort(-weight, kind="stable")[:count]


def ratio(first: np.ndarray, second: np.ndarray) -> np.ndarray:
  """Lowe's test 1 - d1/d2 of cosine distances: 0 for an ambiguous match, 1 for an exact one."""
  return 1 - (1 - first) / np.maximum(1 - second, 1e-9)


def recall(errors: np.ndarray, threshold: float) -> float:
  """The share of errors below a threshold."""
  return float((np.asarray(errors) < threshold).mean())


def _unit(x):
  return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


@jax.jit
def _nearest(source, target):
  # Not `lax.top_k`, which sorts on CPUs.
  cosine = jnp.matmul(_unit(source), target.T, precision="float32")
  places = cosine.argmax(1)
  others = jnp.where(jnp.arange(len(target)) == places[:, None], -jnp.inf, cosine)
  return places.astype(jnp.int32), cosine.max(1), others.max(1)
