#!/usr/bin/env bash
# Several hosts on one Linux machine, linked by a network of a chosen rate and delay: for MPICH's mpirun, without ssh.
# Needs root, iproute2 (ip, tc) and util-linux (nsenter, unshare); a delay needs python3 and /dev/net/tun besides.
# A host has network, UTS, IPC, PID and mount namespaces and a /dev/shm of its own; files are those of the machine.
#
#   hosts.sh up N                  hosts 10.78.0.10, 10.78.0.11 ... on a bridge, as fast as the machine is
#   hosts.sh up N DELAY_US MBIT    on a switch written in Python: each packet is DELAY_US on its way, one way (0: not
#                                  limited); it takes up to half a core, and about 40 us more
#   hosts.sh shape MBIT            limit what each host of the bridge sends (tc tbf); 0: no limit
#   hosts.sh enter I CMD...        run CMD in the network of host I
#   hosts.sh mpirun N CMD...       run CMD in N ranks, one on each host
#   hosts.sh down                  end everything that `up` started; `up` does so itself where it fails
#
# HOSTS_STATE (/run/distbp-hosts) is the folder where it remembers what is up: another folder, another set of hosts.
set -euo pipefail
state=${HOSTS_STATE:-/run/distbp-hosts}

ip_of() { echo "10.78.0.$((10 + $1))"; }
each() { for i in $(seq 0 $(($(cat "$state/n") - 1))); do "$@" "$i"; done; }
in_net() { nsenter --net="/run/netns/$1" "${@:2}"; }

down() {
  [ -d "$state" ] || return 0
  local name
  name=$(cat "$state/name" 2>/dev/null || echo none)
  for file in "$state"/pid-* "$state"/wire; do
    if [ -s "$file" ]; then kill -9 "$(cat "$file")" 2>/dev/null || true; fi
  done
  for net in $(ip netns list | cut -d' ' -f1); do
    case $net in "$name"-*) ip netns del "$net" || true ;; esac
  done
  rm -rf "$state"
}

plug_in() { # host $1 into the bridge
  ip link add eth0 netns "$name-$1" type veth peer name "p$1" netns "$name-switch"
  in_net "$name-switch" ip link set "p$1" master br0 up
}

boot() { # host $1 on its network namespace
  in_net "$name-$1" ip addr add "$(ip_of "$1")/24" dev eth0
  in_net "$name-$1" ip link set eth0 up
  in_net "$name-$1" ip link set lo up
  setsid nsenter --net="/run/netns/$name-$1" unshare --uts --mount --ipc --pid --fork --kill-child --mount-proc \
    sh -c "hostname host$1 && mount -t tmpfs tmpfs /dev/shm && exec sleep infinity" </dev/null >"$state/log-$1" 2>&1 &
  local outer=$!
  for _ in $(seq 100); do
    sleep 0.02
    if pgrep -P "$outer" -x sleep >"$state/pid-$(ip_of "$1")"; then return 0; fi
  done
  echo "hosts.sh: expected host $1 to start, it did not: $(cat "$state/log-$1")" >&2
  return 1
}

up() { # N [DELAY_US MBIT]
  if [ -d "$state" ]; then
    echo "hosts.sh: expected no hosts up, got those of $state. Run hosts.sh down." >&2
    exit 2
  fi
  trap down EXIT INT TERM
  mkdir -p "$state"
  name=dbp$$
  echo "$name" >"$state/name"
  echo "$1" >"$state/n"
  ip netns add "$name-switch"
  for i in $(seq 0 $(($1 - 1))); do ip netns add "$name-$i"; done
  if [ $# -gt 1 ]; then
    python3 - "$2" "$3" $(each echo "$name-" | tr -d ' ') <<<"$wire" >"$state/wire-log" 2>&1 &
    echo $! >"$state/wire"
    for _ in $(seq 100); do grep -q up "$state/wire-log" 2>/dev/null && break || sleep 0.05; done
    grep -q up "$state/wire-log" || { cat "$state/wire-log" >&2; return 1; }
  else
    in_net "$name-switch" ip link add br0 type bridge
    in_net "$name-switch" ip link set br0 up
    each plug_in
  fi
  each boot
  cat >"$state/launch" <<END
#!/bin/sh
# What ssh is to mpirun: launch [-option...] HOST COMMAND...
while [ "\${1#-}" != "\$1" ]; do shift; done
pid=\$(cat "$state/pid-\$1") && shift && exec nsenter -t "\$pid" -a sh -c "\$*"
END
  chmod +x "$state/launch"
  trap - EXIT INT TERM
}

# A switch between network namespaces: TAPs that take packets of up to 64 KiB, a delay and a rate for each receiver.
wire=$(cat <<'END'
import ctypes, fcntl, heapq, os, select, struct, sys, time

delay, rate = float(sys.argv[1]) * 1e-6, float(sys.argv[2]) * 1e6 / 8  # s, bytes/s
libc, home = ctypes.CDLL(None, use_errno=True), os.open("/proc/self/ns/net", os.O_RDONLY)
taps, of_mac, due, n = [], {}, [], 0
for name in sys.argv[3:]:
    if libc.setns(os.open(f"/run/netns/{name}", os.O_RDONLY), 0x40000000):  # CLONE_NEWNET
        raise OSError(ctypes.get_errno(), "setns")
    tap = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(tap, 0x400454CA, struct.pack("16sH22x", b"eth0", 0x0002 | 0x1000 | 0x4000))  # TUNSETIFF
    fcntl.ioctl(tap, 0x400454D0, 1 | 2 | 4)  # TUNSETOFFLOAD: checksums, TCP of IPv4 and IPv6
    taps.append(tap)
    libc.setns(home, 0x40000000)
os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))  # before the ranks, which poll
free = dict.fromkeys(taps, 0.0)  # when the last packet to it has passed
print("up", flush=True)
while True:
    ready, _, _ = select.select(taps, [], [], max(0.0, due[0][0] - time.monotonic()) if due else None)
    for tap in ready:
        try:
            packet = os.read(tap, 70000)
        except BlockingIOError:
            continue
        now, to = time.monotonic(), packet[10:16]  # after 10 bytes of virtio_net_hdr
        of_mac[packet[16:22]] = tap
        for other in [of_mac[to]] if to in of_mac else [one for one in taps if one != tap]:
            free[other] = max(now, free[other]) + (len(packet) / rate if rate else 0.0)
            n += 1
            heapq.heappush(due, (free[other] + delay, n, other, packet))
    while due and due[0][0] <= time.monotonic():
        _, _, other, packet = heapq.heappop(due)
        try:
            os.write(other, packet)
        except OSError:
            pass  # as if lost
END
)

shape() { # MBIT host
  local qdisc="dev eth0 root"
  if [ "$1" = 0 ]; then
    in_net "$(cat "$state/name")-$2" tc qdisc del $qdisc 2>/dev/null || true
  else
    in_net "$(cat "$state/name")-$2" tc qdisc replace $qdisc tbf rate "$1mbit" burst 128kb latency 20ms
  fi
}

enter() { exec nsenter -t "$(cat "$state/pid-$(ip_of "$1")")" -n -u -i -- "${@:2}"; }

case ${1:-} in
up) up "${@:2}" ;;
shape) each shape "$2" ;;
enter) enter "${@:2}" ;;
mpirun) enter 0 mpirun -launcher-exec "$state/launch" -hosts "$(each ip_of | head -n "$2" | paste -sd,)" -n "$2" "${@:3}" ;;
down) down ;;
*) sed -n '2,14p' "${BASH_SOURCE[0]}"; exit 2 ;;
esac
