#!/usr/bin/env bash
# Trains on TPUs of a GKE cluster, as an xpk workload (pip install xpk); it starts anew when a node
# is lost, and goes on from the last checkpoint.
#
#   CLUSTER=mine TYPE=tpu7x-512 SLICES=1 bash launch/gke.sh \
#     --config=configs/vit7b.py --workdir=gs://BUCKET/vit7b --config.mesh.tensor=2 ...
#
# Needs a cluster that xpk has made, docker, and gcloud with a project and a zone set. A slice more
# lies along the mesh's data axis.
set -euo pipefail
cd "$(dirname "$0")/.."
: "${CLUSTER:?a cluster that xpk knows}" "${TYPE:?such as v6e-256}"

xpk workload create --cluster="$CLUSTER" --workload="${NAME:-dinov3}" --tpu-type="$TYPE" \
  --num-slices="${SLICES:-1}" --max-restarts="${RESTARTS:-20}" \
  --base-docker-image="${IMAGE:-python:3.12}" --script-dir=. \
  --command="bash -c '. launch/environment.sh tpu,tfds && python -m dinov3_jax.main --distributed \
    $(printf '%q ' "$@")'"
