"""Somebody else's network as a backbone: a function from images to CLS and patches, and no more."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dinov3_jax.models import callables


class Foreign(nnx.Module):
  """A frozen backbone without parameters, which heads can be trained on.

  It speaks like the ViT. A traceable function becomes part of the compiled program, and what
  arrays it closes over are constants of that. One for the host is called by `jax.pure_callback`:
  every batch goes to the host and its features back, while the device waits.

  Args:
    callable: the name of a function, see `callables.find`. It takes float32 images [n, H, W, C],
      normalised, in NumPy's arrays if it is for the host, and returns CLS [n, D] and patches
      [n, N, D], in rows.
    width: D.
    patch_size: side of a patch, pixels.
    host: whether it cannot be traced by JAX.
    in_channels: C.
    digest: that its weights must have, see `checked`.
  """

  def __init__(self, callable: str, width: int, patch_size: int, host: bool = False,
               in_channels: int = 3, digest: str = "", *, rngs: nnx.Rngs | None = None):
    del digest, rngs
    self.callable, self.host = callable, host
    self.width, self.patch_size, self.in_channels = width, patch_size, in_channels

  def __call__(self, images: jax.Array) -> dict[str, jax.Array]:
    """Tokens of preprocessed images, float [B, H, W, C]: `cls` [B, D], `storage` [B, 0, D] and
    `patches` [B, N, D]."""
    height, width = images.shape[1:3]
    if height % self.patch_size or width % self.patch_size:
      raise ValueError(f"images of {height}x{width} are not a whole number of patches of "
                       f"{self.patch_size}: resize them to a multiple")
    pixels = jax.lax.stop_gradient(images.astype(jnp.float32))
    if self.host:
      tokens = jax.pure_callback(self.compute, tuple(self._expected(images.shape)), pixels,
                                 vmap_method="sequential")
    else:
      tokens = self.compute(pixels)
    cls, patches = (jax.lax.stop_gradient(x).astype(images.dtype) for x in tokens)
    return {"cls": cls, "storage": patches[:, :0], "patches": patches}

  def compute(self, images: jax.Array | np.ndarray) -> tuple:
    """CLS [B, D] and patches [B, N, D], float32, of float32 images [B, H, W, C], as the function
    makes them; on the host if it is for that.

    Raises:
      callables.Misfit: they have other shapes.
    """
    array = np.asarray if self.host else jnp.asarray
    tokens = callables.find(self.callable)(array(images))
    if not isinstance(tokens, tuple | list) or len(tokens) != 2:
      raise callables.Misfit(f"{self.callable} must return two arrays, CLS and patches, not "
                             f"{type(tokens).__name__}")
    tokens = tuple(map(array, tokens))
    for what, found, wanted in zip(("CLS", "patches"), tokens, self._expected(images.shape)):
      if found.shape != wanted.shape:
        raise callables.Misfit(
          f"{self.callable} makes {what} {list(found.shape)} where {list(wanted.shape)} are "
          "expected: set model.width and model.patch_size to what it has")
    return tuple(x.astype(np.float32) for x in tokens)

  def _expected(self, shape: tuple[int, ...]) -> list[jax.ShapeDtypeStruct]:
    places = shape[1] // self.patch_size * (shape[2] // self.patch_size)
    return [jax.ShapeDtypeStruct((shape[0], *own, self.width), jnp.float32)
            for own in ((), (places,))]

  def forward_crops(self, global_crops: jax.Array, local_crops: jax.Array | None = None,
                    masks: jax.Array | None = None, *, key: jax.Array | None = None,
                    shards: int = 1, remat: str = "none") -> tuple[dict, dict | None]:
    """The training forward, as the ViT's. There is no mask token, so that `masks` hide nothing; nor
    is anything random, or computed again."""
    del masks, key, shards, remat
    return self(global_crops), None if local_crops is None else self(local_crops)


def checked(settings: Mapping) -> str:
  """The digest of a foreign backbone's weights, after it has made the tokens of one image.

  Args:
    settings: arguments of `Foreign`.

  Returns:
    What the function says in its attribute `digest`; "" if it has none.

  Raises:
    ValueError: one line: there is no such function, its tokens have other shapes than the settings
      say, it cannot be traced, or its digest is not the one of the settings.
    ModuleNotFoundError: a package that it needs is missing.
  """
  name, side = settings["callable"], 2 * settings["patch_size"]
  function = callables.find(name)
  model = Foreign(**settings)
  image = np.zeros((1, side, side, model.in_channels), np.float32)
  try:
    if model.host:
      model.compute(image)
    else:
      jax.eval_shape(model.compute, image)
  except callables.Misfit:
    raise
  except Exception as error:  # whatever a foreign function makes of an image
    reason = (str(error).strip().splitlines() or [""])[0][:160]
    advice = "" if model.host else "; if it is no function of JAX, set model.host=True"
    raise ValueError(f"{name} does not take images of {side}x{side} px "
                     f"({type(error).__name__}: {reason}){advice}") from error
  digest = getattr(function, "digest", "")
  if settings.get("digest") and digest != settings["digest"]:
    raise ValueError(f"the weights of {name} are not those that its heads were trained on: their "
                     f"digest is {digest or 'unknown'}, not {settings['digest']}")
  return digest
