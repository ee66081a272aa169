#!/usr/bin/env bash
# Style and tests. All it needs is Python 3.11+.
#
#   bash launch/test.sh [PYTEST OPTIONS]      such as tests/losses, or -k resume
#   PYTHON=python3.12 bash launch/test.sh     with this Python, where there is no .venv yet
#
# The tests compare with PyTorch, which on Linux comes with CUDA; without, it is gigabytes smaller:
#   PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu bash launch/test.sh
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/environment.sh quickstart,tfds,ray,notebooks,docs,test

ruff check
python -m pytest -n 2 --dist loadfile "$@"
