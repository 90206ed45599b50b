#!/usr/bin/env bash
# Runs an experiment on this machine: on all of its GPUs, or on its CPU.
#
#   launch/local.sh --config=configs/quickstart.py --workdir=runs/quickstart [more flags]
#
# All arguments go to `python -m smskd_jax.main`; without any, it is the quickstart that runs. Killed or stopped, it
# goes on from its last checkpoint when the same command is given again. Signals reach Python: SIGTERM saves first.
# PYTHON names another interpreter, CUDA_VISIBLE_DEVICES chooses GPUs.
set -euo pipefail

if [[ $# -eq 0 ]]; then
  cd "$(dirname "${BASH_SOURCE[0]}")/.."
  set -- --config=configs/quickstart.py --workdir=runs/quickstart
fi
exec "${PYTHON:-python}" -m smskd_jax.main "$@"
