"""Functions from images to CLS and patches, by name: anybody's, and models of `transformers`."""

import functools
import hashlib
import importlib
import inspect
from collections.abc import Callable
from typing import Any

import numpy as np

LIBRARY = "transformers"
TOLD = ("width", "patch_size", "host", "mean", "std")


class Misfit(ValueError):
  """A function that is not there, or not what its settings say."""


@functools.cache
def find(name: str) -> Callable:
  """The function of a name.

  Args:
    name: `module:function`, or `transformers:MODEL`, with the name of a model on the hub or the
      path of a folder, as that package's `AutoModel` takes it.

  Raises:
    Misfit: one line: there is no such module, function or model.
    ModuleNotFoundError: transformers or PyTorch is missing.
  """
  module, _, attribute = name.partition(":")
  if not module or not attribute:
    raise Misfit(f"model.callable must be module:function or {LIBRARY}:MODEL, not {name!r}")
  if module == LIBRARY:
    return Transformers(attribute)
  try:
    function = functools.reduce(getattr, attribute.split("."), importlib.import_module(module))
  except ModuleNotFoundError as error:
    if error.name and not module.startswith(error.name):
      raise  # of what it needs itself
    raise Misfit(f"there is no module {module}, in the folder that this runs in or installed, for "
                 f"{name}") from error
  except AttributeError as error:
    raise Misfit(f"the module {module} has no {attribute}") from error
  if not callable(function):
    raise Misfit(f"{name} is no function, but {type(function).__name__}")
  return function


def describe(name: str) -> dict[str, Any]:
  """What a function says of itself, for the settings of `Foreign` and of its images.

  Returns:
    Those of `width`, `patch_size`, `host`, `mean` and `std` that it has as attributes. Of a model
    of transformers its files of settings say them, and no weights are read.

  Raises:
    Misfit, ModuleNotFoundError: see `find`.
  """
  module, _, attribute = name.partition(":")
  if module == LIBRARY:
    return _described(attribute)
  function = find(name)
  return {key: getattr(function, key) for key in TOLD if hasattr(function, key)}


class Transformers:
  """A vision model of the package transformers, run by PyTorch on the host.

  Attributes:
    digest: 16 hexadecimal digits of a hash of all its weights.
  """

  def __init__(self, model: str):
    """Args:
      model: as `AutoModel.from_pretrained` takes it.
    """
    torch, transformers = _packages()
    try:
      network = transformers.AutoModel.from_pretrained(model)
    except (OSError, ValueError) as error:
      raise _missing(model, error) from error
    self._network, self._torch = getattr(network, "vision_model", network).eval(), torch
    self.patch_size = self._network.config.patch_size
    # Some have positions for one size of images, and stretch them only if they are asked to.
    stretch = "interpolate_pos_encoding"
    known = stretch in inspect.signature(self._network.forward).parameters
    self._options = {stretch: True} if known else {}

  @functools.cached_property
  def digest(self) -> str:
    digest = hashlib.sha256()
    for name, x in sorted(self._network.state_dict().items()):
      digest.update(name.encode())
      digest.update(x.detach().cpu().contiguous().reshape(-1).view(self._torch.uint8).numpy())
    return digest.hexdigest()[:16]

  def __call__(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """CLS [n, D] and patches [n, N, D] of float32 images [n, H, W, 3].

    Of a model without a CLS token its pooled output takes that place.
    """
    torch = self._torch
    count = images.shape[1] // self.patch_size * (images.shape[2] // self.patch_size)
    with torch.inference_mode():
      pixels = torch.from_numpy(np.array(images, np.float32)).permute(0, 3, 1, 2)
      output = self._network(pixel_values=pixels, **self._options)
    tokens = output.last_hidden_state.float().numpy()
    cls = tokens[:, 0] if tokens.shape[1] > count else output.pooler_output.float().numpy()
    return cls, tokens[:, -count:]


def _described(model: str) -> dict[str, Any]:
  _, transformers = _packages()
  try:
    config = transformers.AutoConfig.from_pretrained(model)
  except (OSError, ValueError) as error:
    raise _missing(model, error) from error
  config = getattr(config, "vision_config", config)
  if not hasattr(config, "patch_size") or not hasattr(config, "hidden_size"):
    raise Misfit(f"{model} is no vision transformer: its settings have no patch_size and "
                 "hidden_size; write a function of your own for it")
  told = dict(width=config.hidden_size, patch_size=config.patch_size, host=True)
  try:
    images, _ = transformers.ImageProcessingMixin.get_image_processor_dict(model)
  except (OSError, ValueError):  # it has no such file
    return told
  pairs = (("mean", "image_mean"), ("std", "image_std"))
  return told | {key: tuple(images[theirs]) for key, theirs in pairs if images.get(theirs)}


def _packages():
  try:
    import torch
    import transformers
  except ModuleNotFoundError as error:
    raise ModuleNotFoundError("models of transformers need two packages: pip install torch "
                              "transformers", name=error.name) from error
  return torch, transformers


def _missing(model: str, error: Exception) -> Misfit:
  reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
  return Misfit(f"transformers cannot open {model}: {reason}")
