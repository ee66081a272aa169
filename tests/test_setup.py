"""What is built of this folder works where this folder is not."""

import os
import pathlib
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv

import pytest

import dinov3_jax

ROOT = pathlib.Path(__file__).parents[1]
VERSION = dinov3_jax.__version__


def call(*command, cwd, code=0):
  """The standard output of a command that ends with `code`; its errors, if that is not 0."""
  environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
  done = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True,
                        env=environment, timeout=300)
  assert done.returncode == code, done.stdout + done.stderr
  return done.stderr if code else done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
  """A folder with a source distribution, and a wheel that was built of nothing else."""
  folder = tmp_path_factory.mktemp("built")
  source = folder / "source"
  for name in ("dinov3_jax", "configs"):
    shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
  for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
    shutil.copy(ROOT / name, source)
  call(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, source, cwd=folder)
  shutil.rmtree(source)
  return folder


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory):
  """The programs of an environment with the wheel, and the libraries of this one."""
  folder = tmp_path_factory.mktemp("environment")
  venv.create(folder, symlinks=True)
  python = folder / "bin" / "python"
  here = call(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder)
  wheel, = built.glob("*.whl")
  call(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index",
       "--disable-pip-version-check", wheel, cwd=folder)
  libraries = [path for path in sys.path if path.endswith("-packages")]
  assert sysconfig.get_path("purelib") in libraries
  (pathlib.Path(here.strip()) / "libraries.pth").write_text("\n".join(libraries))
  return folder / "bin"


def test_the_source_distribution_has_all_it_is_built_of(built):
  path, = built.glob("*.tar.gz")
  with tarfile.open(path) as archive:
    names = {name.split("/", 1)[-1] for name in archive.getnames()}
  for folder in ("dinov3_jax", "configs"):
    ours = {str(file.relative_to(ROOT)) for file in (ROOT / folder).rglob("*.py")}
    assert ours <= names
  assert {"LICENSE", "README.md", "pyproject.toml", "setup.py"} <= names


def test_every_module_is_there_and_none_of_them_is_that_of_this_folder(installed, tmp_path):
  script = f"""
import importlib, pkgutil, configs, dinov3_jax
found = []
for package in (dinov3_jax, configs):
  assert not package.__file__.startswith({str(ROOT)!r}), package.__file__
  found += [module.name for module in pkgutil.walk_packages(package.__path__,
                                                            package.__name__ + ".")]
print(*found)
"""
  found = set(call(installed / "python", "-c", script, cwd=tmp_path).split())
  ours = {".".join(path.relative_to(ROOT).with_suffix("").parts) for folder in ("dinov3_jax",
          "configs") for path in (ROOT / folder).rglob("*.py") if path.stem != "__init__"}
  assert ours <= found


def test_commands_in_another_folder(installed, tmp_path):
  dinov3 = installed / "dinov3"
  assert call(dinov3, "--version", cwd=tmp_path) == f"dinov3_jax {VERSION}\n"
  assert call(dinov3, "train", "-h", cwd=tmp_path).startswith("usage: dinov3 train")
  for recipe in ("quickstart", "configs/quickstart.py"):
    error = call(dinov3, "train", f"--config={recipe}", "--workdir=run", "--config.train.stepz=2",
                 cwd=tmp_path, code=2)
    assert error == "error: unknown setting train.stepz; did you mean train.steps?\n"
  error = call(dinov3, "train", "--config=quickstart", "--workdir=run",
               "--config.data.source=/nowhere", cwd=tmp_path, code=1)
  assert error.startswith("error: no folder of images at /nowhere")
  assert call(installed / "python", "-m", "dinov3_jax.train", "--version",
              cwd=tmp_path) == f"dinov3_jax {VERSION}\n"
