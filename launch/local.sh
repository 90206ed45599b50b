#!/usr/bin/env bash
# Runs an experiment on this machine: on all of its GPUs, or on its CPU; in one process, or in N that are one run.
#
#   launch/local.sh [N] --config=configs/quickstart.py --workdir=runs/quickstart [more flags]
#
# All arguments go to `python -m smskd_jax.main`; without any, it is the quickstart that runs. Killed or stopped, it
# goes on from its last checkpoint when the same command is given again. Signals reach Python: it saves first, and the
# status is 143 after SIGTERM and 130 after Ctrl-C.
# PYTHON names another interpreter, CUDA_VISIBLE_DEVICES chooses GPUs. One process is as fast on one machine; N of them
# show what a run on N machines would do. GPUs are dealt out evenly.
set -euo pipefail

count=1
if [[ "${1:-}" =~ ^[1-9][0-9]*$ ]]; then
  count=$1
  shift
fi
if [[ $# -eq 0 ]]; then
  cd "$(dirname "${BASH_SOURCE[0]}")/.."
  set -- --config=configs/quickstart.py --workdir=runs/quickstart
fi
python=${PYTHON:-python}
if ((count == 1)); then
  exec "$python" -m smskd_jax.main "$@"
fi

port=$("$python" -c 'import socket; s = socket.socket(); s.bind(("localhost", 0)); print(s.getsockname()[1])')
gpus=0
if command -v nvidia-smi >/dev/null; then
  gpus=$(nvidia-smi --list-gpus | wc -l)
fi
children=()
signalled=0
# Both are SIGTERM to the processes, which ignore Ctrl-C as all in the background do; the second time does not wait.
# shellcheck disable=SC2329  # traps call it
pass_on() {  # STATUS
  local signal=TERM
  ((signalled == 0)) || signal=KILL
  signalled=$1
  kill -s "$signal" "${children[@]}" 2>/dev/null || true
}
trap 'pass_on 143' TERM
trap 'pass_on 130' INT
for ((i = 0; i < count; i++)); do
  each=$((gpus / count))
  if ((each > 0)); then
    JAX_LOCAL_DEVICE_IDS=$(seq -s, $((i * each)) $(((i + 1) * each - 1)))
    export JAX_LOCAL_DEVICE_IDS
  fi
  "$python" -m smskd_jax.main --distributed="localhost:$port,$count,$i" "$@" &
  children+=($!)
done
status=0
for child in "${children[@]}"; do
  code=0
  wait "$child" 2>/dev/null || code=$?
  if ((signalled)); then  # a signal ends the waiting, not the child
    code=0
    wait "$child" 2>/dev/null || code=$?
  fi
  ((code == 0)) || status=$code
done
if ((signalled && status > 128)); then
  status=$signalled
fi
exit "$status"
