"""The arrays of a backbone out of what training code wraps around them."""

import collections
import logging
from collections.abc import Iterable, Mapping
from typing import Any

log = logging.getLogger(__name__)

# Entries of a file, and beginnings of names, that mean the model itself.
WRAPPERS = ("teacher", "student", "model", "state_dict", "model_state_dict", "backbone", "module",
            "_orig_mod")
NETWORKS = ("teacher", "student")
# Averages that some trainers keep beside the model: choosing one of the two is the user's.
AVERAGES = ("ema", "model_ema", "ema_model", "ema_state_dict", "state_dict_ema")
HEADS = ("dino_head.", "ibot_head.")  # of our exports and the reference's trainer
PROJECTORS = "projectors."  # of EUPE: only its distillation used them
DEPTH = 8  # of wrappers within each other


def unwrap(content: Mapping[Any, Any], network: str = "teacher") -> dict[str, Any]:
  """The arrays of a backbone by their bare names.

  Arrays may lie within entries named as `WRAPPERS`, in any order, and their names may begin with
  these words and a dot, repeatedly; names that lack the word stay as they are. What lies beside
  such an entry (an optimizer, an epoch) is left out, as are the heads of DINO and iBOT, and
  projectors, which a warning names.

  Args:
    content: of a file; arrays are NumPy's or PyTorch's.
    network: which one to take where there are both "teacher" and "student".

  Raises:
    ValueError: there are no arrays, or several models that may be meant.
  """
  for _ in range(DEPTH):
    inner = [key for key, value in content.items() if _holds_arrays(value)]
    if not inner:
      break
    choices = [key for key in inner if key in WRAPPERS or key in AVERAGES]
    if not choices:
      if any(_is_array(value) for value in content.values()):
        raise ValueError(f"holds further arrays within {_listed(inner)}: save one model alone")
      raise ValueError(f"holds its arrays within {_listed(inner)}, and not within one of "
                       f"{', '.join(WRAPPERS)}: save the model's state_dict() alone")
    content = content[_chosen(choices, network)]
  arrays = {key: value for key, value in content.items() if _is_array(value)}
  unnamed = [key for key in arrays if not isinstance(key, str)]
  if not arrays or unnamed:
    raise ValueError(f"holds arrays named {_listed(unnamed)}, which are no names of parameters"
                     if arrays else "holds no arrays: save the model's state_dict()")
  return _without_prefixes(arrays, network)


def _without_prefixes(arrays: dict[str, Any], network: str) -> dict[str, Any]:
  for _ in range(DEPTH):
    arrays = _without_extras(arrays)
    words = {name.partition(".")[0] for name in arrays}
    choices = [word for word in (*WRAPPERS, *AVERAGES) if word in words]
    if not choices:
      break
    chosen = _chosen(choices, network)
    others = tuple(f"{word}." for word in choices if word != chosen)
    kept = [name for name in arrays if not name.startswith(others)] if others else list(arrays)
    bare = [name.removeprefix(f"{chosen}.") for name in kept]
    twice = [name for name, count in collections.Counter(bare).items() if count > 1]
    if twice:
      raise ValueError(f"{_listed(twice)} is there with and without {chosen}: save one model alone")
    arrays = {short: arrays[name] for short, name in zip(bare, kept)}
  return arrays


def _without_extras(arrays: dict[str, Any]) -> dict[str, Any]:
  projectors = [name for name in arrays if name.startswith(PROJECTORS)]
  if projectors:
    log.warning("left out: %d arrays of projectors, which are no part of the backbone",
                len(projectors))
  kept = {name: x for name, x in arrays.items() if not name.startswith((*HEADS, PROJECTORS))}
  if arrays and not kept:
    raise ValueError("holds heads alone, and no backbone")
  return kept


def _chosen(choices: list[str], network: str) -> str:
  if len(choices) == 1:
    return choices[0]
  if set(choices) == set(NETWORKS) and network in NETWORKS:
    return network
  raise ValueError(f"may mean any of its {_listed(choices)}: save the one you want alone")


def _is_array(value: Any) -> bool:
  return hasattr(value, "shape") and hasattr(value, "dtype")


def _holds_arrays(value: Any) -> bool:
  """Whether there are arrays in an entry, itself a mapping, or in mappings within."""
  level, seen = [value], set()
  for _ in range(DEPTH):
    # The same mapping may be there many times; once is enough.
    level = [x for x in {id(x): x for x in level}.values()
             if isinstance(x, Mapping) and id(x) not in seen]
    seen.update(map(id, level))
    level = [x for mapping in level for x in mapping.values()]
    if any(map(_is_array, level)):
      return True
  return False


def _listed(names: Iterable[Any]) -> str:
  names = [str(name)[:60] for name in names]
  return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
