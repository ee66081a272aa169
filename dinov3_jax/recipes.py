"""Recipes by name or file, and changes to their settings.

A recipe is a Python file with a function `get_config`. Those of this project are installed beside
the package, as `configs`: `quickstart` and `configs/quickstart.py` both mean one of them wherever
there is no such file.
"""

import difflib
import os
import pathlib
import runpy
from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

FOLDER = pathlib.Path(__file__).resolve().parents[1] / "configs"


def names() -> list[str]:
  """The recipes of this project, sorted; without `base`, from which all of them start."""
  return sorted(path.stem for path in FOLDER.glob("*.py") if path.stem not in ("__init__", "base"))


def find(recipe: str | os.PathLike) -> str:
  """The file of a recipe.

  Args:
    recipe: a file, which `~` may begin, or the name of a recipe of this project, with or without
      `configs/` and `.py`; behind either, `:ARGUMENT` for its `get_config`.

  Returns:
    Its path, with the argument, if there is one.

  Raises:
    ValueError: there is none.
  """
  file, colon, argument = os.path.expanduser(os.fspath(recipe)).partition(":")
  if os.path.isfile(file):
    return file + colon + argument
  ours = FOLDER / f"{file.removeprefix('configs/').removesuffix('.py')}.py"
  if ours.parent == FOLDER and ours.is_file():
    return f"{ours}{colon}{argument}"
  raise ValueError(f"no config file {file}: give a file, or one of {', '.join(names())}")


def load(recipe: str | os.PathLike, settings: Mapping[str, Any] | None = None) -> ConfigDict:
  """The settings of a recipe.

  Args:
    recipe: as for `find`.
    settings: what to change, such as {"train.steps": 100}.

  Returns:
    A locked ConfigDict.

  Raises:
    ValueError: there is no such recipe, it is no valid one, or there is no such setting.
    TypeError: a setting of the wrong kind.
  """
  file, colon, argument = find(recipe).partition(":")
  try:
    config = runpy.run_path(file)["get_config"](*[argument] * bool(colon))
  except Exception as error:
    if argument and isinstance(error, OSError | ValueError):  # of what the recipe was given
      raise ValueError(f"{recipe}: {' '.join(str(error).split())}") from error
    reason = " ".join(str(error.args[0] if error.args else "").split())
    raise ValueError(f"{file} is no valid config: {type(error).__name__}: {reason}") from error
  if not isinstance(config, ConfigDict):
    raise ValueError(f"{file} is no valid config: its get_config returns a "
                     f"{type(config).__name__}, not a ConfigDict as that of configs/base.py")
  return changed(config, settings) if settings else config


def changed(config: ConfigDict, settings: Mapping[str, Any]) -> ConfigDict:
  """A copy of settings with some of them changed.

  Args:
    config: all settings.
    settings: by name, such as {"train.steps": 100}.

  Raises:
    ValueError: there is no such setting.
    TypeError: a value of the wrong kind.
  """
  known = keys(config)
  for key in settings:
    check_key(key, known)
  config = config.copy_and_resolve_references()
  for key, value in settings.items():
    try:
      config.update_from_flattened_dict({key: value})
    except TypeError as error:
      raise TypeError(f"{key} cannot be {value!r}: {error}") from error
  return config


def keys(config: ConfigDict) -> list[str]:
  """The names of all settings, sections included."""
  return list(_walk(config.to_dict(), ""))


def _walk(settings: Mapping[str, Any], prefix: str) -> Iterator[str]:
  for name, value in settings.items():
    yield prefix + name
    if isinstance(value, dict):
      yield from _walk(value, f"{prefix}{name}.")


def check_key(key: str, known: list[str]):
  """Raises a ValueError that names what may be meant, if `key` is not among the known settings."""
  if key in known:
    return
  leaf = lambda name: name.rsplit(".", 1)[-1]
  near = (difflib.get_close_matches(key, known, 2, cutoff=0.75)
          or [name for name in known if leaf(name) == leaf(key)])
  hint = f"; did you mean {' or '.join(near)}?" if near else "; see configs/base.py"
  raise ValueError(f"unknown setting {key}{hint}")
