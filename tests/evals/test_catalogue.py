"""The list of tasks."""

import importlib
import inspect

import pytest

from dinov3_jax.evals.catalogue import TASKS


@pytest.mark.parametrize("name", TASKS)
def test_every_task_is_there(name):
  module, function = TASKS[name].place.split(":")
  found = getattr(importlib.import_module(f"dinov3_jax.evals.tasks.{module}"), function)
  assert list(inspect.signature(found).parameters) == ["session"] and found.__doc__
