#!/usr/bin/env bash
# A launcher pod and a worker pod out of namespaces, each with its own network, and the worker with its own processes:
# what the manifests of launch/kubernetes say to run, as their user and with their rights, on a root of its own.
#   unshare --mount --pid --fork --kill-child --net --ipc --mount-proc bash pods.sh PYTHON SOURCES PARTS HOSTFILE-LINE
# PARTS: a folder with settings.toml, sshd_config, ssh_config, the launcher's script (launch) and the worker's (stop).
# All ends with the namespaces. Needs root, iproute2, openssh-server. Prints the exit codes of two launcher pods.
set -euo pipefail
if [ "${1:-}" != inside ]; then
  python=$1 sources=$2 parts=$3 line=$4
  mount -t tmpfs pods /mnt
  mkdir /mnt/{up,work,root}
  mount -t overlay pods -o lowerdir=/,upperdir=/mnt/up,workdir=/mnt/work /mnt/root
  cd /mnt/root
  findmnt -rno TARGET | while read -r place; do # what is mounted on the root, but not on that again
    case $place in / | /mnt* | /run* | /*/*) ;; *) mount --rbind "$place" ".$place" ;; esac
  done
  for place in "$python" "$(readlink -f "$python")" "$sources" "$parts"; do # for the pods' user to reach
    while [ "$place" != / ]; do
      place=$(dirname "$place")
      [ "$(stat -c %A "$place" | cut -c10 | tr t x)" = x ] || chmod o+x ".$place"
    done
  done
  mount -t tmpfs shm ./dev/shm && chmod 1777 ./dev/shm
  mount -t tmpfs run ./run && mkdir ./run/netns
  mkdir -p runs etc/mpi etc/distbp home/distbp/.ssh/..data etc/ssh/ssh_config.d
  chown 1000:1000 runs
  cp "$parts"/{settings.toml,sshd_config} etc/distbp/
  cp "$parts/ssh_config" etc/ssh/ssh_config.d/distbp.conf
  { grep -v :1000: /etc/passwd; echo distbp:x:1000:1000::/home/distbp:/bin/sh; } > etc/passwd
  printf '%s\n' '127.0.0.1 localhost' "10.9.9.1 distbp-launcher $(hostname)" "10.9.9.2 ${line%%[ :]*}" > etc/hosts
  echo "$line" > etc/mpi/hostfile
  # The key as the operator mounts it: a secret of root's, that the group may read, behind links.
  cd home/distbp/.ssh
  ssh-keygen -q -t ecdsa -b 521 -m PEM -N '' -f ..data/id_rsa
  cp ..data/id_rsa.pub ..data/authorized_keys
  for file in id_rsa id_rsa.pub authorized_keys; do ln -s "..data/$file" "$file"; done
  chown -R 0:1000 .
  chmod 640 ..data/id_rsa
  chmod 1777 .
  exec chroot /mnt/root bash "$(realpath "${BASH_SOURCE[0]}")" inside "$python" "$sources" "$parts"
fi

python=$2 sources=$3 parts=$4
ip link set lo up
ip netns add worker
ip link add name left type veth peer name right netns worker
ip addr add 10.9.9.1/24 dev left
ip link set left up
ip -n worker addr add 10.9.9.2/24 dev right
ip -n worker link set right up
ip -n worker link set lo up
cd /home/distbp
pod=(setpriv --reuid 1000 --regid 1000 --clear-groups --no-new-privs --bounding-set -all --inh-caps -all)
ip netns exec worker unshare --pid --fork --kill-child --mount-proc \
  "${pod[@]}" env -i /usr/sbin/sshd -D -e -f /etc/distbp/sshd_config &
worker=$!
variables=(HOME=/home/distbp RUN=train "PATH=$(dirname "$python"):/usr/bin:/bin" "PYTHONPATH=$sources"
  ${OPENBLAS_CORETYPE:+OPENBLAS_CORETYPE=$OPENBLAS_CORETYPE} # this machine's choice of BLAS kernels: bits depend on it
  # what the operator sets
  OMPI_MCA_orte_keep_fqdn_hostnames=true OMPI_MCA_orte_default_hostfile=/etc/mpi/hostfile
  OMPI_MCA_orte_set_default_slots=2 "OMPI_MCA_plm_rsh_args=-o ConnectionAttempts=10"
  HYDRA_HOST_FILE=/etc/mpi/hostfile "HYDRA_LAUNCH_EXTRA_ARGS=-o ConnectionAttempts=10")
launcher() { "${pod[@]}" env -i "${variables[@]}" sh -c "$(cat "$parts/launch")"; }

launcher &
first=$!
until [ -s /runs/train/journal.jsonl ]; do # it trains
  kill -0 $first || exit 1
  sleep 0.05
done
nsenter -t "$(pgrep -P $worker)" -r -m -p -n "${pod[@]}" env -C / sh -c "$(cat "$parts/stop")"
code=0
wait $first || code=$?
echo "first launcher: $code"
code=0
launcher || code=$?
echo "second launcher: $code"
sha256sum /runs/train/model.safetensors
