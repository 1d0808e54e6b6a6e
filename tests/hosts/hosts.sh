#!/usr/bin/env bash
# Several "hosts" on one Linux machine, for tests that must cross a network. Needs root, iproute2, openssh-server.
# A host has its own network, UTS, mount, IPC and PID namespaces, its own /tmp and /dev/shm, and an sshd as process 1.
#   hosts.sh up N DIR...     hosts node0 .. node(N-1) at 10.77.0.10+i, on a bridge; each DIR stays visible inside their /tmp
#   hosts.sh enter I CMD...  run CMD on host I (its namespaces; working directory: the first DIR)
#   hosts.sh kill I          kill host I with all that runs on it;   hosts.sh revive I   bring it back
#   hosts.sh cut I | mend I  take its link down | up (silent: no packet tells anyone)
#   hosts.sh bytes           what crossed each link
#   hosts.sh down            end everything that 'up' started
set -eu
state=${HOSTS_STATE:-/run/distbp-hosts}

namespace() { echo "distbp$1"; }

boot() { # start host $1 on its network namespace
  setsid nsenter --net="/run/netns/$(namespace "$1")" unshare --uts --mount --ipc --pid --fork --kill-child --mount-proc \
    bash "$state/init" "$1" >"$state/sshd$1.log" 2>&1 </dev/null &
  local outer=$!
  for _ in $(seq 100); do
    sleep 0.05
    pgrep -P $outer >"$state/pid$1" && return
  done
}

up() { # number, folders
  local n=$1 i
  shift
  mkdir -p "$state" /run/sshd
  echo "$n" >"$state/n"
  realpath "$@" >"$state/folders"
  ssh-keygen -q -t ed25519 -N '' -f "$state/id"
  ssh-keygen -q -t ed25519 -N '' -f "$state/hostkey"
  {
    echo 127.0.0.1 localhost
    for i in $(seq 0 $((n - 1))); do echo "10.77.0.$((10 + i)) node$i"; done
  } >"$state/etc-hosts"
  printf '%s\n' 'Port 22' "HostKey $state/hostkey" "AuthorizedKeysFile $state/id.pub" 'StrictModes no' \
    'PermitRootLogin prohibit-password' 'PasswordAuthentication no' 'UsePAM no' 'PidFile none' >"$state/sshd_config"
  cat >"$state/ssh" <<END
#!/bin/sh
exec ssh -F $state/ssh_config "\$@"
END
  chmod +x "$state/ssh"
  printf '%s\n' "IdentityFile $state/id" 'IdentitiesOnly yes' 'StrictHostKeyChecking no' 'UserKnownHostsFile /dev/null' \
    'LogLevel ERROR' >"$state/ssh_config"
  cat >"$state/init" <<END
set -e
hostname node\$1
mount -t tmpfs tmpfs /dev/shm
mount --bind $state/etc-hosts /etc/hosts
own=$state/tmp\$1
mkdir -p \$own
mount -t tmpfs tmpfs \$own
while read -r folder; do
  case \$folder in /tmp/*) mkdir -p "\$own/\${folder#/tmp/}"; mount --bind "\$folder" "\$own/\${folder#/tmp/}" ;; esac
done <$state/folders
mount --rbind \$own /tmp
ip link set lo up
exec /usr/sbin/sshd -D -e -f $state/sshd_config
END
  ip netns add distbpswitch
  ip netns exec distbpswitch ip link add br0 type bridge
  ip netns exec distbpswitch ip link set br0 up
  for i in $(seq 0 $((n - 1))); do
    ip netns add "$(namespace "$i")"
    ip link add eth0 netns "$(namespace "$i")" type veth peer name "p$i" netns distbpswitch
    ip netns exec distbpswitch ip link set "p$i" master br0 up
    ip netns exec "$(namespace "$i")" ip addr add "10.77.0.$((10 + i))/24" dev eth0
    ip netns exec "$(namespace "$i")" ip link set eth0 up
    boot "$i"
  done
}

case ${1:-} in
up) shift; up "$@" ;;
enter)
  i=$2; shift 2
  exec nsenter -t "$(cat "$state/pid$i")" -n -u -m -i -p -- bash -c 'cd "$0" && exec "$@"' "$(head -1 "$state/folders")" "$@"
  ;;
kill) kill -9 "$(cat "$state/pid$2")" ;;
revive) boot "$2" ;;
cut) ip netns exec "$(namespace "$2")" ip link set eth0 down ;;
mend) ip netns exec "$(namespace "$2")" ip link set eth0 up ;;
bytes)
  for i in $(seq 0 $(($(cat "$state/n") - 1))); do
    ip netns exec "$(namespace "$i")" cat /sys/class/net/eth0/statistics/tx_bytes
  done
  ;;
down)
  for i in $(seq 0 $(($(cat "$state/n") - 1))); do
    kill -9 "$(cat "$state/pid$i")" 2>/dev/null || true
    ip netns del "$(namespace "$i")" || true
  done
  ip netns del distbpswitch || true
  rm -rf "$state"
  ;;
*) sed -n '2,11p' "$0"; exit 2 ;;
esac
