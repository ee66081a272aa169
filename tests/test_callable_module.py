import importlib
import inspect
import subprocess
import sys
import types

import pytest

import dinov3_jax
from dinov3_jax import callable_module

FUNCTIONS = ("evaluate", "export", "features", "train")


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_module_is_the_function_of_its_name(name):
  module = getattr(dinov3_jax, name)
  assert isinstance(module, types.ModuleType) and callable(module)
  home, function = module._call
  expected = getattr(importlib.import_module(home), function)
  assert inspect.signature(module) == inspect.signature(expected)
  assert set(dinov3_jax.__all__) >= {name} and set(dir(dinov3_jax)) >= {name}


@pytest.mark.parametrize("first", ["import dinov3_jax.{0}", "from dinov3_jax import {0}"])
def test_in_whichever_order_things_are_imported(first):
  script = "; ".join([*(first.format(name) for name in FUNCTIONS), "import dinov3_jax",
                      *(f"assert callable(dinov3_jax.{name})" for name in FUNCTIONS),
                      "from dinov3_jax.train import durable",
                      "assert dinov3_jax.train.durable is durable",
                      "assert dinov3_jax.features.read"])
  subprocess.run([sys.executable, "-c", script], check=True, timeout=120)


def test_arguments_and_results_go_through(monkeypatch):
  made = types.ModuleType("made")
  made.function = lambda *args, **kwargs: (args, kwargs)
  monkeypatch.setitem(sys.modules, "made", made)
  callable_module.make_callable("made", "made", "function")
  assert made(1, b=2) == ((1,), dict(b=2)) and made.__name__ == "made"
  with pytest.raises(AttributeError):
    made.nothing  # noqa: B018
