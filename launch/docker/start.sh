#!/usr/bin/env bash
# What a container of docker-compose.yml runs: distbp-start head|worker, and distbp-start health for its health check.
# Anything else is run as it is: docker run distbp python -m distbp.train --help
#
#   DISTBP_SETTINGS         settings file in the container (compose mounts yours); DISTBP_ARGS further options
#   DISTBP_NAME             the run's name: the stack, started again, goes on with it
#   DISTBP_WORKERS          workers to wait for; DISTBP_WAIT so many seconds
#   DISTBP_RANKS_PER_HOST   ranks of each worker, and of the head
#   DISTBP_LAUNCH_ARGS      further options of python -m distbp.launch
set -euo pipefail

make_keys() { # once, whoever of head and workers is first; known_hosts comes last, so its presence means all are there
  exec 9>/keys/.lock
  flock 9
  if [ ! -s /keys/known_hosts ]; then
    rm -f /keys/user_key* /keys/host_key* /keys/known_hosts*
    ssh-keygen -q -t ed25519 -N '' -C distbp -f /keys/user_key
    ssh-keygen -q -t ed25519 -N '' -C distbp -f /keys/host_key
    echo "* $(cut -d ' ' -f 1,2 /keys/host_key.pub)" >/keys/known_hosts.new
    mv /keys/known_hosts.new /keys/known_hosts
  fi
  exec 9>&-
}

workers() { # the names of all workers that are up, like distbp-worker-2, as Docker's name server knows them
  local address
  getent ahostsv4 worker | cut -d ' ' -f 1 | sort -u | while read -r address; do
    getent hosts "$address" | awk '{ split($2, part, "."); print part[1] }'
  done | sort -V
}

missing() { # how many there should be; names those that are not up
  local up number names=() prefix
  up=$(workers)
  prefix=$(head -n 1 <<<"$up" | sed 's/[0-9]*$//') # distbp-worker-
  for number in $(seq "$1"); do
    grep -qx "$prefix$number" <<<"$up" || names+=("${prefix:-worker-}$number")
  done
  echo "${names[*]}"
}

head_() {
  local wanted=${DISTBP_WORKERS:-3} wait=${DISTBP_WAIT:-60} slots=${DISTBP_RANKS_PER_HOST:-1} name=${DISTBP_NAME:-run}
  local hosts=/tmp/hosts end=$((SECONDS + ${DISTBP_WAIT:-60})) up run=()
  until up=$(workers) && [ "$(wc -w <<<"$up")" -ge "$wanted" ]; do
    if [ $SECONDS -ge $end ]; then
      echo "head: expected $wanted workers within $wait s, got $(wc -w <<<"$up"): no $(missing "$wanted")." \
        "Start as many as DISTBP_WORKERS says (docker compose up --scale worker=$wanted), or change it." >&2
      exit 2
    fi
    sleep 0.5
  done
  { echo "$HOSTNAME slots=$slots"; for one in $up; do echo "$one slots=$slots"; done; } >$hosts
  if [ -e "/runs/$name/settings.toml" ]; then
    echo "head: the run $name is there: going on with it, with its own settings" >&2
    run=(--resume "$name")
  else
    [ -z "${DISTBP_SETTINGS:-}" ] && [ ! -e /settings.toml ] || run=("${DISTBP_SETTINGS:-/settings.toml}")
    # shellcheck disable=SC2206  # options are words
    run+=(--name "$name" ${DISTBP_ARGS:-})
  fi
  # shellcheck disable=SC2086
  exec python -m distbp.launch --hostfile $hosts --wait $((end > SECONDS ? end - SECONDS : 1)) ${DISTBP_LAUNCH_ARGS:-} \
    -- --runs /runs "${run[@]}"
}

case ${1:-} in
head)
  echo $$ >/tmp/head.pid # exec keeps the number: it is the launcher's afterwards
  make_keys
  head_
  ;;
worker)
  make_keys
  exec /usr/sbin/sshd -D -e -f /etc/distbp/sshd_config
  ;;
health)
  if [ -e /tmp/head.pid ]; then
    grep -qs distbp.launch "/proc/$(cat /tmp/head.pid)/cmdline"
  else
    exec ssh -o BatchMode=yes -o ConnectTimeout=3 localhost true
  fi
  ;;
*) exec "$@" ;;
esac
