"""The list of tasks."""

import ast
import importlib
import inspect
import pathlib

import pytest

import dinov3_jax.evals
from dinov3_jax.evals.attentive import Shape
from dinov3_jax.evals.catalogue import TASKS


@pytest.mark.parametrize("name", TASKS)
def test_every_task_is_there(name):
  module, function = TASKS[name].place.split(":")
  found = getattr(importlib.import_module(f"dinov3_jax.evals.tasks.{module}"), function)
  assert list(inspect.signature(found).parameters) == ["session"] and found.__doc__


def test_options_are_those_that_tasks_ask_for():
  """As the catalogue must say them before it imports a task."""
  asked = set(vars(Shape()))
  for path in pathlib.Path(dinov3_jax.evals.__file__).parent.rglob("*.py"):
    for node in ast.walk(ast.parse(path.read_text())):
      if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "options":
        asked |= {keyword.arg for keyword in node.keywords if keyword.arg}
  assert {option for task in TASKS.values() for option in task.options} == asked
