#!/usr/bin/env bash
# Trains on TPUs of a GKE cluster, as an xpk workload (pip install xpk). When a node is lost it is
# started anew, and goes on from the last checkpoint.
#
#   CLUSTER=mine TYPE=tpu7x-512 SLICES=1 bash launch/gke.sh --config=configs/vit7b.py \
#     --workdir=/mnt/shared/vit7b --config.data.source=/mnt/shared/images --config.mesh.tensor=2
#
# Needs a cluster that xpk has made, with a storage attached (xpk storage attach) that the paths are
# on, docker, and gcloud with a project and a zone set.
set -euo pipefail
cd "$(dirname "$0")/.."
: "${CLUSTER:?a cluster that xpk knows}" "${TYPE:?such as v6e-256}"

code=$(mktemp -d)  # the image holds the last commit, and nothing else of this folder
trap 'rm -rf "$code"' EXIT
git archive HEAD | tar -x -C "$code"
xpk workload create --cluster="$CLUSTER" --workload="${NAME:-dinov3}" --tpu-type="$TYPE" \
  --num-slices="${SLICES:-1}" --max-restarts="${RESTARTS:-20}" \
  --base-docker-image="${IMAGE:-python:3.12}" --script-dir="$code" \
  --command="bash launch/worker.sh $(printf '%q ' "$@")"
