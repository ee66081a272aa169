#!/usr/bin/env bash
# What each host of a cluster runs: installs what is missing, finds the others and trains with them.
#
#   EXTRAS=tpu,tfds bash launch/worker.sh --config=FILE --workdir=DIR [--config.KEY=VALUE ...]
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/environment.sh "${EXTRAS:-tpu,tfds}"
exec python -m dinov3_jax.main --distributed "$@"
