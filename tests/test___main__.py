import ast
import pathlib
import re
import runpy
import subprocess
import sys

import pytest

from dinov3_jax import __main__, __version__, arguments

PACKAGE = pathlib.Path(__main__.__file__).parent


def commands_there_are():
  """The modules that do something when they are run."""
  for path in PACKAGE.glob("*.py"):
    body = ast.parse(path.read_text()).body
    if path.stem != "__main__" and any(
        isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'"
        for node in body):
      yield path.stem


def test_the_commands_listed_are_those_that_there_are():
  modules = [__main__.MODULES.get(command, command) for command in __main__.COMMANDS]
  assert sorted(modules) == sorted(commands_there_are())


@pytest.fixture(autouse=True)
def called_as_before(monkeypatch):
  monkeypatch.setattr(arguments, "_caller", arguments.MODULE)


@pytest.fixture
def dispatched(monkeypatch):
  """Calls of the commands, which are not run: module, name, arguments; `dispatched.code` ends
  them."""

  class Calls(list):
    code = None

  calls = Calls()

  def run_module(name, run_name, alter_sys):
    assert alter_sys
    calls.append((name, run_name, sys.argv[1:]))
    if calls.code is not None:
      sys.exit(calls.code)

  monkeypatch.setattr(runpy, "run_module", run_module)
  return calls


def run(monkeypatch, *arguments):
  monkeypatch.setattr(sys, "argv", ["__main__.py", *arguments])
  return __main__.main(sys.argv)


@pytest.mark.parametrize("command", [*__main__.COMMANDS, "main"])
def test_a_command_gets_the_rest_of_the_line(dispatched, monkeypatch, command):
  assert run(monkeypatch, command, "--workdir=x", "-h", "main") == 0
  module = "main" if command == "train" else command
  assert dispatched == [(f"dinov3_jax.{module}", "__main__", ["--workdir=x", "-h", "main"])]


@pytest.mark.parametrize("code", [0, 1, 2, 130, 143])
def test_exit_codes_are_those_of_the_command(dispatched, monkeypatch, code):
  dispatched.code = code
  with pytest.raises(SystemExit) as caught:
    run(monkeypatch, "main")
  assert caught.value.code == code


@pytest.mark.parametrize("arguments", [(), ("-h",), ("--help",)])
def test_the_commands_are_listed_where_none_is_given(dispatched, monkeypatch, capsys, arguments):
  assert run(monkeypatch, *arguments) == 0
  out, err = capsys.readouterr()
  assert all(f"\n  {command} " in out for command in __main__.COMMANDS) and err == ""
  assert dispatched == []


def test_the_version(dispatched, monkeypatch, capsys):
  assert run(monkeypatch, "--version") == 0
  assert capsys.readouterr().out == f"dinov3_jax {__version__}\n" and dispatched == []


@pytest.mark.parametrize("command", ["trian", "dinov3_jax.main", "signals", "--config=x", ""])
def test_what_is_no_command_is_one_line(dispatched, monkeypatch, capsys, command):
  """Modules that are none included."""
  assert run(monkeypatch, command) == 2
  out, err = capsys.readouterr()
  assert out == "" and err == (f"error: there is no command {command}: use one of "
                               f"{', '.join(__main__.COMMANDS)}\n")
  assert dispatched == []


@pytest.mark.parametrize("arguments, code, out, err", [
  (("main", "--config"), 2, "", "error: "),
  (("train", "--workdir=x"), 2, "", "error: --config is missing: python -m dinov3_jax train --co"),
  (("main", "--version"), 0, f"dinov3_jax {__version__}\n", ""),
  (("nothing",), 2, "", "error: there is no command nothing: ")])
def test_in_a_process_of_its_own(arguments, code, out, err):
  done = subprocess.run([sys.executable, "-m", "dinov3_jax", *arguments], cwd=PACKAGE.parent,
                        capture_output=True, text=True, timeout=60)
  assert done.returncode == code and done.stdout == out
  assert done.stderr.startswith(err) and done.stderr.count("\n") == bool(err)


def test_the_console_script_speaks_of_itself():
  script = ("import sys; from dinov3_jax.__main__ import console; "
            "sys.argv = ['dinov3', *sys.argv[1:]]; sys.exit(console())")
  call = lambda *arguments: subprocess.run(
    [sys.executable, "-c", script, *arguments], cwd=PACKAGE.parent, capture_output=True, text=True,
    timeout=60)
  assert call().stdout == f"{__main__.__doc__}\n"
  assert call("train", "-h").stdout.startswith("usage: dinov3 train [-h]")
  assert "\n  dinov3 export WEIGHTS --format" in call("export", "--help").stdout
  assert "dinov3_jax.main" not in call("train", "-h").stdout
  wrong = call("train", "--config=quickstart")
  assert wrong.returncode == 2
  assert wrong.stderr == ("error: --workdir is missing: dinov3 train "
                          "--config=configs/quickstart.py --workdir=DIR\n")


@pytest.mark.parametrize("command", __main__.COMMANDS)
def test_help_has_groups_and_an_example_and_takes_less_than_a_second(command):
  script = f"""
import resource, sys
from dinov3_jax import __main__
try:
  sys.argv = ["dinov3", "{command}", "-h"]
  code = __main__.main(sys.argv, "dinov3 ")
except SystemExit as stop:
  code = stop.code
used = resource.getrusage(resource.RUSAGE_SELF)
print(used.ru_utime + used.ru_stime, file=sys.stderr)
sys.exit(code)
"""
  done = subprocess.run([sys.executable, "-c", script], cwd=PACKAGE.parent, capture_output=True,
                        text=True, timeout=60)
  assert done.returncode == 0
  assert float(done.stderr) < 1  # seconds of the processor, whatever else runs beside it
  assert f"\n  dinov3 {command} " in done.stdout and "usage: dinov3" in done.stdout
  assert re.search(r"\n\n(options|positional arguments):\n", done.stdout)


def test_importing_the_package_takes_no_time():
  script = ("import time; a = time.process_time(); import dinov3_jax, sys; "
            "print(time.process_time() - a, *sys.modules)")
  seconds, *modules = subprocess.run(
    [sys.executable, "-c", script], cwd=PACKAGE.parent, capture_output=True, text=True, timeout=60,
    check=True).stdout.split()
  assert float(seconds) < 0.1
  assert not {"jax", "numpy", "flax", "ml_collections"} & set(modules)
