"""Modules of this package that are functions, too.

`dinov3_jax.train`, `features`, `evaluate` and `export` are modules, each of which can also be
called as the function that it is named after: `dinov3_jax.train("quickstart", "runs/first")` and
`dinov3_jax.train.loop` both work, in whichever order things are imported.
"""

import importlib
import inspect
import sys
import types
from collections.abc import Callable


class CallableModule(types.ModuleType):
  """A module with a function of its own, which is imported when it is first asked for."""

  def __call__(self, *args, **kwargs):
    return self._function(*args, **kwargs)

  @property
  def _function(self) -> Callable:
    home, name = self.__dict__["_call"]
    return getattr(importlib.import_module(home), name)

  @property
  def __signature__(self) -> inspect.Signature:
    return inspect.signature(self._function)


def make_callable(module: str, home: str, function: str):
  """Makes a module do, when it is called, what `function` of the module `home` does."""
  made = sys.modules[module]
  made._call = home, function
  made.__class__ = CallableModule
