#!/usr/bin/env bash
# Runs an experiment on a Cloud TPU slice of any number of hosts, from your own machine, through preemptions.
#
#   launch/tpu_pod.sh [--dry_run] NAME ZONE TYPE --config=FILE --workdir=DIR [more flags]
#   launch/tpu_pod.sh study1 us-west4-a v5litepod-16 --config=configs/smskd.py --workdir=/mnt/shared/runs/kd
#
# Makes the slice if there is none of this name, copies the last commit to all of its hosts, installs it there, starts
# `python -m smskd_jax.main` on all of them and follows the first one's log. If the slice is preempted meanwhile, it is
# made anew and the run goes on from its last checkpoint; so does the same command later. At the end the run's folder,
# without its store, is fetched as NAME.tar.gz. The slice stays: `gcloud compute tpus tpu-vm delete NAME --zone=ZONE`.
#
# All hosts must see --workdir on one disk (docs/pods.md). --dry_run prints every command and runs none.
# PYTHON names the hosts' interpreter, 3.11 or later (python3.11); VERSION the slice's software (tpu-ubuntu2204-base);
# SPOT=1 asks for a spot slice; TRIES says how often to begin again (100). Needs gcloud, logged in, with a project set.
set -euo pipefail

dry_run=0
if [[ "${1:-}" == --dry_run ]]; then
  dry_run=1
  shift
fi
if [[ $# -lt 4 ]]; then
  echo "usage: $0 [--dry_run] NAME ZONE TYPE --config=FILE --workdir=DIR [more flags]" >&2
  exit 2
fi
name=$1
zone=$2
type=$3
shift 3
workdir=
for flag in "$@"; do
  case $flag in
    --workdir=*) workdir=${flag#--workdir=} ;;
  esac
done
if [[ -z $workdir ]]; then
  echo "error: --workdir=DIR: missing; a disk that all hosts see" >&2
  exit 2
fi
python=${PYTHON:-python3.11}
version=${VERSION:-tpu-ubuntu2204-base}
tries=${TRIES:-100}
root=$(dirname "${BASH_SOURCE[0]}")/..
flags=$(printf '%q ' "$@")

run() {
  if ((dry_run)); then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}

tpu() {
  run gcloud compute tpus tpu-vm "$@" --zone="$zone"
}

on() {  # WORKER COMMAND
  tpu ssh "$name" --worker="$1" --command="$2"
}

state() {
  if ((dry_run)); then
    echo NOT_FOUND
  else
    gcloud compute tpus tpu-vm describe "$name" --zone="$zone" --format='value(state)' 2>/dev/null || echo NOT_FOUND
  fi
}

make_slice() {
  case $(state) in
    READY) return ;;
    NOT_FOUND) ;;
    *) tpu delete "$name" --quiet ;;
  esac
  local spot=()
  if [[ -n ${SPOT:-} ]]; then
    spot=(--spot)
  fi
  tpu create "$name" --accelerator-type="$type" --version="$version" "${spot[@]}"
}

install_on_all() {
  local archive
  archive=$(mktemp -d)/smskd_jax.tar.gz
  run git -C "$root" archive --output="$archive" HEAD
  tpu scp "$archive" "$name:" --worker=all
  on all "mkdir -p smskd_jax && tar -xzf smskd_jax.tar.gz -C smskd_jax && cd smskd_jax && \
{ test -x .venv/bin/pip || $python -m venv .venv; } && .venv/bin/pip install -q -e '.[tpu]'"
}

start_and_follow() {
  on all "cd smskd_jax && rm -f status && \
{ nohup sh -c '.venv/bin/python -u -m smskd_jax.main --distributed=auto \"\$@\"; echo \$? >status' run $flags \
>run.log 2>&1 </dev/null & echo \$! >pid; }"
  # shellcheck disable=SC2016  # the host expands it
  on 0 'cd smskd_jax && tail --pid="$(cat pid)" -n +1 -f run.log; exit "$(cat status)"'
}

for ((try = 1; try <= tries; try++)); do
  make_slice
  code=0
  { install_on_all && start_and_follow; } || code=$?
  if ((code == 0)); then
    on 0 "cd smskd_jax && tar -czf ../result.tar.gz --exclude=./store -C '$workdir' ."
    tpu scp "$name:result.tar.gz" "$name.tar.gz" --worker=0
    break
  fi
  if ((code == 143)); then  # SIGTERM, which announces a preemption: the slice may still be there for some seconds
    echo "the run was stopped, and has saved; going on" >&2
    continue
  fi
  if [[ $(state) == READY ]]; then
    echo "error: the run ended with status $code; its log is smskd_jax/run.log on the hosts" >&2
    exit "$code"
  fi
  echo "the slice is gone; making it anew" >&2
done
exit "$code"
