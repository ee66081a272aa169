#!/usr/bin/env bash
# Trains on a pod of TPU VMs: asks for one (a queued resource), waits, installs, and runs.
#
#   NAME=dinov3 ZONE=us-east5-a TYPE=v5p-512 RUNTIME=v2-alpha-tpuv5 bash launch/tpu_pod.sh \
#     --config=configs/vit7b.py --workdir=gs://BUCKET/vit7b --config.data.source=/mnt/images
#
# Needs gcloud with a project set. TYPE counts cores (v4, v5p) or chips (v5e, v6e). A pod that is
# there already is used as it is, so the same command goes on with a stopped run; take it down with
#   gcloud compute tpus queued-resources delete $NAME --zone=$ZONE --force
set -euo pipefail
cd "$(dirname "$0")/.."
: "${NAME:?a name for the pod}" "${ZONE:?its zone}" "${TYPE:?such as v5p-512}"
: "${RUNTIME:?such as v2-alpha-tpuv5, see the list of TPU software versions}"

tpu() { gcloud compute tpus "$@" --zone="$ZONE"; }
state() { tpu queued-resources describe "$NAME" --format='value(state.state)'; }
everywhere() { tpu tpu-vm ssh "$NAME" --worker=all --command="$1"; }

if ! state >/dev/null 2>&1; then
  tpu queued-resources create "$NAME" --node-id="$NAME" --accelerator-type="$TYPE" \
    --runtime-version="$RUNTIME"
fi
until [ "$(state)" = ACTIVE ]; do
  case "$(state)" in FAILED | SUSPENDED) echo "error: the request has failed" >&2; exit 1 ;; esac
  echo "waiting for $NAME: $(state)"
  sleep 60
done

code=$(mktemp)
git archive --format=tar.gz HEAD > "$code"
tpu tpu-vm scp "$code" "$NAME:dinov3_jax.tar.gz" --worker=all
everywhere 'mkdir -p dinov3_jax && tar -xzf dinov3_jax.tar.gz -C dinov3_jax && cd dinov3_jax &&
  . launch/environment.sh tpu,tfds'
everywhere "cd dinov3_jax && . .venv/bin/activate && python -m dinov3_jax.main --distributed \
  $(printf '%q ' "$@")"
