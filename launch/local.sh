#!/usr/bin/env bash
# Runs an experiment on this machine, on all GPUs or the CPU, in one process or in N processes of one run.
#
#   launch/local.sh [N] --config=configs/quickstart.py --workdir=runs/quickstart [more flags]
#
# All arguments go to `python -m smskd_jax.main`; without arguments, the quickstart runs. After a stop, the same command
# continues from the last checkpoint. Signals reach Python, which saves first; the exit status is 143 after SIGTERM and
# 130 after Ctrl-C.
# PYTHON names another interpreter, CUDA_VISIBLE_DEVICES selects GPUs. On one machine, one process is as fast; N processes
# simulate a run on N machines. GPUs are distributed evenly.
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
# The processes get SIGTERM for both signals, because background processes ignore Ctrl-C; the second signal kills them.
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
