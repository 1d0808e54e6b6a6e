#!/usr/bin/env bash
# Check how the code reads: ruff (lint and format), mypy --strict, import-linter. Sets up .venv on the first call.
#
#   launch/check.sh          check        launch/check.sh --fix    also mend what ruff can
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

case ${1:-} in -h | --help) sed -n '2,4p' "$0"; exit 0 ;; esac
set_up "$mpi,plot,test"
cd "$root"
if [ "${1:-}" = --fix ]; then
  "$venv/bin/ruff" format distbp tests benchmarks
  "$venv/bin/ruff" check --fix distbp tests benchmarks
else
  "$venv/bin/ruff" format --check distbp tests benchmarks
  "$venv/bin/ruff" check distbp tests benchmarks
fi
"$venv/bin/mypy"
"$venv/bin/lint-imports"
