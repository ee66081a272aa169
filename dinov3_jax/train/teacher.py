"""A frozen teacher: found, checked against what it was, and read."""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict

from dinov3_jax.data.preprocess import preprocess
from dinov3_jax.models import foreign
from dinov3_jax.models.partition import param_sharding
from dinov3_jax.train import checkpoint
from dinov3_jax.train.state import Params, abstract_modules
from dinov3_jax.train.targets import HEADS
from dinov3_jax.weights import checksums, heads, loading, native
from dinov3_jax.weights.places import is_native


@dataclasses.dataclass
class Teacher:
  """A network with its heads, that nothing changes.

  Attributes:
    path: where it is, as the settings name it.
    config: its own settings: the sections `model`, `dino`, `ibot` and, for the mean and deviation
      of its images, `crops`.
    params: `{"backbone", "dino_head", "ibot_head"}`, in the computation's dtype.
    digest: of every bit of its parameters.
  """

  path: str
  config: ConfigDict
  params: Params
  digest: str


@dataclasses.dataclass
class Found:
  """A teacher of which nothing but its settings is known yet.

  Attributes:
    path, config: see `Teacher`.
    folder: the checkpoint or the file that `path` means.
    expected: digests that it must have, such as those that checkpoints name.
  """

  path: str
  folder: epath.Path
  config: ConfigDict
  expected: tuple[str, ...]

  def abstract(self, mesh: Mesh, dtype: str) -> Params:
    """Its parameters as shapes with their layout."""
    return abstract(self.config, mesh, dtype)

  def read(self, mesh: Mesh, dtype: str) -> Teacher:
    """Its parameters, each shard on its device.

    Args:
      mesh: of the devices.
      dtype: of the computation; what is frozen need not be kept in another.

    Raises:
      ValueError: it is not the one that the settings name.
      OSError: it cannot be read.
    """
    params = _read(self, mesh)
    digest = checksums.of_json(checksums.of_arrays(params)[0])
    for expected in self.expected:
      if digest != expected:
        raise changed(self.path, expected, digest)
    cast = jax.jit(lambda tree: jax.tree.map(lambda x: x.astype(dtype), tree), donate_argnums=0,
                   out_shardings=jax.tree.map(lambda x: x.sharding, params))
    if jnp.dtype(dtype) != jnp.float32:
      params = cast(params)
    return Teacher(self.path, self.config, params, digest)


def abstract(config: ConfigDict, mesh: Mesh, dtype: str) -> Params:
  """The parameters of the teacher with these settings, as shapes with their layout."""
  _, shapes = abstract_modules(config)
  return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, dtype, sharding=s), shapes,
                      param_sharding(mesh, shapes))


def changed(path: str, expected: str, digest: str) -> ValueError:
  """The error of a teacher that is not what it was."""
  return ValueError(f"the teacher {path} is not the one that this run learned from: its digest is "
                    f"{digest}, not {expected}; name that one in distill.teacher, or choose "
                    "another --workdir")


def find(teacher: str, digest: str = "") -> Found | None:
  """The teacher that the section `distill` of the settings names, its parameters not read yet.

  Args:
    teacher: a run's folder, one of its checkpoints, or a file of weights with heads; "": none.
      Of a run on somebody else's network, that is called, and the heads alone are read.
    digest: that it must have; "": any.

  Returns:
    What is known of it; None where there is none.

  Raises:
    ValueError: it has no heads, or what `dinov3_jax.load` raises.
    OSError: it is not there, or damaged.
  """
  if not teacher:
    return None
  path, expected = loading.locate(None, teacher), (digest,) if digest else ()
  if is_native(path):
    folder = checkpoint.locate(path)
    config = checkpoint.stored_config(folder)
    native.check_backbone(config)
    lacking = [name for name in HEADS if name not in native.stored_arrays(folder)["teacher"]]
    if lacking:
      raise ValueError(f"the checkpoint {folder} has no {' and no '.join(lacking)}: take a run "
                       "that has trained its heads")
    if "callable" in config.model:
      foreign.checked(config.model.to_dict())
    return Found(teacher, folder, config, expected)
  sizes, _ = heads.read(path)
  prepare = preprocess(path)
  config = ConfigDict(dict(
    model=plain(loading.settings_of(path)), dino=sizes["dino_head"], ibot=sizes["ibot_head"],
    crops=dict(mean=prepare.mean, std=prepare.std)))
  return Found(teacher, path, config, expected)


def plain(settings: Mapping) -> dict:
  """Settings whose sections are dicts, whatever kind of mapping they were."""
  return {key: plain(value) if isinstance(value, Mapping) else value
          for key, value in settings.items()}


def _read(found: Found, mesh: Mesh) -> Params:
  """Float32 parameters on their devices."""
  abstract = found.abstract(mesh, jnp.float32)
  if is_native(found.folder):
    return checkpoint.restore_teacher(found.folder, abstract)[0]
  _, backbone = loading.read(None, found.folder, jnp.float32, mesh, "teacher")
  of_heads = heads.read(found.folder)[1]
  return {"backbone": backbone} | {
    name: jax.tree.map(lambda x, s: jax.device_put(x, s.sharding), of_heads[name], abstract[name])
    for name in HEADS}
