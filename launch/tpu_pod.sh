#!/usr/bin/env bash
# Trains on a pod of TPU VMs: asks for one (a queued resource), waits, installs, and runs.
#
#   NAME=dinov3 ZONE=us-east5-a TYPE=v5p-512 RUNTIME=v2-alpha-tpuv5 bash launch/tpu_pod.sh \
#     --config=configs/vit7b.py --workdir=/mnt/shared/vit7b --config.data.source=/mnt/shared/images
#
# Needs gcloud with a project set, and a file system that all hosts mount, such as Filestore. TYPE
# counts cores (v4, v5p) or chips (v5e, v6e). Training goes on when this command is interrupted:
#   launch/tpu_pod.sh                  with no arguments: shows the log again
#   STOP=1 launch/tpu_pod.sh           saves and stops; with arguments again, it goes on from there
#   gcloud compute tpus queued-resources delete $NAME --zone=$ZONE --force
set -euo pipefail
cd "$(dirname "$0")/.."
: "${NAME:?a name for the pod}" "${ZONE:?its zone}"

tpu() { gcloud compute tpus "$@" --zone="$ZONE"; }
state() { tpu queued-resources describe "$NAME" --format='value(state.state)'; }
on() { tpu tpu-vm ssh "$NAME" --worker="$1" --command="$2"; }

if [ -n "${STOP:-}" ]; then
  on all 'pkill -TERM -f dinov3_jax.main'
  exit
fi

if [ $# -gt 0 ]; then
  if ! state >/dev/null 2>&1; then
    : "${TYPE:?such as v5p-512}" "${RUNTIME:?such as v2-alpha-tpuv5: a TPU software version}"
    tpu queued-resources create "$NAME" --node-id="$NAME" --accelerator-type="$TYPE" \
      --runtime-version="$RUNTIME"
  fi
  until [ "$(state)" = ACTIVE ]; do
    case "$(state)" in FAILED | SUSPENDED) echo "error: the request has failed" >&2; exit 1 ;; esac
    echo "waiting for $NAME: $(state)"
    sleep 60
  done

  code=$(mktemp)
  trap 'rm -f "$code"' EXIT
  git archive --format=tar.gz HEAD > "$code"
  tpu tpu-vm scp "$code" "$NAME:dinov3_jax.tar.gz" --worker=all
  # Their Ubuntu has Python 3.10.
  on all 'sudo apt-get update -q && sudo apt-get install -qy python3.11-venv &&
    mkdir -p dinov3_jax && tar -xzf dinov3_jax.tar.gz -C dinov3_jax'
  on all "nohup bash dinov3_jax/launch/worker.sh $(printf '%q ' "$@") > train.log 2>&1 < /dev/null &"
fi
on 0 'tail -n 100 -F train.log'
