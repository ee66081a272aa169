#!/usr/bin/env bash
# Trains a small DINOv3 from scratch and says what it has learned. All it needs is Python 3.11+.
#
#   bash launch/quickstart.sh [--config.KEY=VALUE ...]
#
# Checkpoints, metrics and pictures go to runs/quickstart, or to $WORKDIR. Run again, it goes on
# where it was.
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/environment.sh quickstart

workdir=${WORKDIR:-runs/quickstart}
python -m dinov3_jax.main --config=configs/quickstart.py --workdir="$workdir" "$@"
python -m dinov3_jax.report --workdir="$workdir"
