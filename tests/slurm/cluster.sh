#!/usr/bin/env bash
# A real SLURM on this machine for the tests: munge, MariaDB, slurmdbd, slurmctld and four slurmd, all private to one folder.
#   cluster.sh start DIR    install Debian's packages where they are missing, start, wait until the nodes are idle
#   cluster.sh stop DIR     end every daemon it started
# Needs root on Debian; systemd is not used and nothing is written to /etc. Clients find the cluster by SLURM_CONF=DIR/slurm.conf.
set -euo pipefail
action=$1 dir=$(realpath -m "$2")
export SLURM_CONF=$dir/slurm.conf MYSQL_UNIX_PORT=$dir/mariadb.sock

until_true() {  # seconds, description, command
  local end=$((SECONDS + $1)) what=$2; shift 2
  until "$@" >/dev/null 2>&1; do
    if ((SECONDS >= end)); then echo "cluster.sh: $what did not come up" >&2; tail -n 5 "$dir"/*.log >&2; exit 1; fi
    sleep 0.2
  done
}

if [ "$action" = stop ]; then
  for group in "slurmd-n1 slurmd-n2 slurmd-n3 slurmd-n4 slurmctld" "slurmdbd" "mariadb munged"; do
    pids=""
    for name in $group; do [ ! -s "$dir/$name.pid" ] || pids="$pids $(cat "$dir/$name.pid")"; done
    kill $pids 2>/dev/null || true
    for _ in $(seq 30); do kill -0 $pids 2>/dev/null || break; sleep 0.1; done
    kill -9 $pids 2>/dev/null || true
    for name in $group; do rm -f "$dir/$name.pid"; done
  done
  exit 0
fi

missing=()
for package in munge slurmctld slurmd slurm-client slurmdbd mariadb-server; do
  dpkg-query -W -f='${Status}' $package 2>/dev/null | grep -q '^install ok installed' || missing+=("$package")
done
if [ ${#missing[@]} -gt 0 ]; then
  # Debian starts daemons at installation; this file, which it asks first, forbids that
  forbid=/usr/sbin/policy-rc.d
  [ -e $forbid ] || { printf '#!/bin/sh\nexit 101\n' >$forbid; chmod +x $forbid; trap "rm -f $forbid" EXIT; }
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq
  apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi

mkdir -p "$dir/state" "$dir/db"
chmod 755 "$dir"
host=$(hostname -s)
cat >"$dir/slurm.conf" <<CONF
ClusterName=tests
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# cred_expire: how long a requeued job waits before it may start again
AuthInfo=socket=$dir/munge.sock,cred_expire=12
CredType=cred/munge
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool-%n
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd-%n.pid
SlurmctldLogFile=$dir/slurmctld.log
SlurmdLogFile=$dir/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
MailProg=/bin/true
ReturnToService=2
JobRequeue=1
PropagateResourceLimits=NONE
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=3,bf_interval=3,sched_min_interval=0,batch_sched_delay=0
DefMemPerCPU=200
KillWait=5
InactiveLimit=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=localhost
AccountingStoragePass=$dir/munge.sock
JobAcctGatherType=jobacct_gather/none
NodeName=n[1-4] NodeHostname=$host NodeAddr=127.0.0.1 Port=[17101-17104] CPUs=2 RealMemory=6000 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
PartitionName=low Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=30
PartitionName=high Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=100 PreemptMode=OFF
CONF
cat >"$dir/slurmdbd.conf" <<CONF
DbdHost=localhost
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$dir/munge.sock
LogFile=$dir/slurmdbd.log
PidFile=$dir/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
StorageLoc=slurm
CONF
chmod 600 "$dir/slurmdbd.conf"

[ -s "$dir/munge.key" ] || { head -c 1024 /dev/urandom >"$dir/munge.key"; chmod 600 "$dir/munge.key"; }
munged --force --key-file="$dir/munge.key" --socket="$dir/munge.sock" --pid-file="$dir/munged.pid" \
  --log-file="$dir/munged.log" --seed-file="$dir/munge.seed" --num-threads=10
until_true 20 munged munge -S "$dir/munge.sock" -n

[ -d "$dir/db/mysql" ] || mariadb-install-db --no-defaults --user=root --datadir="$dir/db" --skip-test-db \
  --auth-root-authentication-method=socket >"$dir/mariadb-install.log" 2>&1
setsid mariadbd --no-defaults --user=root --datadir="$dir/db" --socket="$MYSQL_UNIX_PORT" --pid-file="$dir/mariadb.pid" --skip-networking \
  --innodb-buffer-pool-size=128M --innodb-lock-wait-timeout=900 --innodb-flush-log-at-trx-commit=2 </dev/null >"$dir/mariadb.log" 2>&1 &
until_true 60 MariaDB mariadb --no-defaults -S "$MYSQL_UNIX_PORT" -e 'create database if not exists slurm'
slurmdbd
until_true 60 slurmdbd sacctmgr -n -i show cluster
sacctmgr -n show cluster format=cluster%20 | grep -qw tests || sacctmgr -i add cluster tests >/dev/null
slurmctld
until_true 30 slurmctld scontrol ping
for i in 1 2 3 4; do mkdir -p "$dir/spool-n$i"; slurmd -N n$i; done
all_idle() { [ "$(sinfo -h -N -p main -t idle -o %N | wc -l)" = 4 ]; }
until_true 60 nodes all_idle
echo "SLURM is up after $SECONDS s; export SLURM_CONF=$SLURM_CONF"
