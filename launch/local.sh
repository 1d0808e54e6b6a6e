#!/usr/bin/env bash
# Train on this machine: sets up .venv on the first call, then runs distbp.train on N ranks.
#
#   launch/local.sh -n 4                              the bundled digits on 4 ranks
#   launch/local.sh -n 2 examples/regression.toml     a settings file
#   launch/local.sh -n 4 --training.epochs 50         any option of python -m distbp.train
#
# Without -n: one rank a core. Exit codes are those of python -m distbp.train.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

ranks=$(nproc 2>/dev/null || echo 2)
case ${1:-} in
-n)
  ranks=${2:-}
  shift 2 || { sed -n '2,8p' "$0"; exit 2; }
  ;;
-h | --help)
  sed -n '2,8p' "$0"
  set_up "$mpi"
  exec "$venv/bin/python" -m distbp.train --help
  ;;
esac
case $ranks in
'' | *[!0-9]* | 0)
  echo "launch/local.sh: -n: expected a number of ranks > 0, got '$ranks'. For example: launch/local.sh -n 4" >&2
  exit 2
  ;;
esac
set_up "$mpi"
mpirun_of "$ranks"
exec "${mpirun[@]}" "$venv/bin/python" -m distbp.train "$@"
