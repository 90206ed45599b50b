#!/usr/bin/env bash
# Runs an experiment on a Cloud TPU VM of one host (v4-8, v5litepod-8, ...), from your own machine. Slices of several
# hosts are not supported by this version.
#
#   launch/tpu_vm.sh NAME ZONE --config=configs/quickstart.py --workdir=runs/quickstart [more flags]
#
# Copies the last commit to ~/smskd_jax on the VM, installs it there and runs `python -m smskd_jax.main` with the other
# arguments; paths are the VM's. The run outlives the connection and writes to ~/smskd_jax/run.log. Once it has ended or
# the VM was preempted, the same command goes on from the last checkpoint: put --workdir on a disk that stays.
# PYTHON names the VM's interpreter, 3.11 or later (python3.11). Needs gcloud, logged in, with a project set.
set -euo pipefail

if [[ $# -lt 3 ]]; then
  echo "usage: $0 NAME ZONE --config=FILE --workdir=DIR [more flags]" >&2
  exit 2
fi
name=$1
zone=$2
shift 2
python=${PYTHON:-python3.11}
flags=$(printf '%q ' "$@")

on_vm() {
  gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --command="$1"
}

git -C "$(dirname "${BASH_SOURCE[0]}")/.." archive HEAD | on_vm 'mkdir -p smskd_jax && tar -x -C smskd_jax'
on_vm "cd smskd_jax && { test -x .venv/bin/pip || $python -m venv .venv; } && .venv/bin/pip install -q -e '.[tpu]'" </dev/null
on_vm "cd smskd_jax && { nohup .venv/bin/python -u -m smskd_jax.main $flags >run.log 2>&1 </dev/null & } \
  && tail --pid=\$! -n +1 -f run.log && wait \$!" </dev/null
