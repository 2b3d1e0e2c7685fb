#!/usr/bin/env bash
# Debian's Slurm for the tests marked `slurm`, where this may install packages; else says why not, and they are skipped.
# Installs programs only: no daemon is started (tests/slurm_box.py starts its own), nothing is configured.
set -euo pipefail
PATH=$PATH:/usr/sbin

present() { command -v slurmctld && command -v slurmd && command -v sbatch && command -v munged; }

if present >/dev/null; then
  echo "slurm: $(slurmctld -V) is here"
  exit 0
fi
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
  echo "slurm: not here, and only root can install it with apt-get; tests marked slurm will be skipped"
  exit 0
fi
policy=/usr/sbin/policy-rc.d # what Debian's packages ask before they start a daemon
if [ ! -e "$policy" ]; then
  trap 'rm -f "$policy"' EXIT
  printf '#!/bin/sh\nexit 101\n' >"$policy"
  chmod 755 "$policy"
fi
log=$(mktemp)
if apt-get update -qq >"$log" 2>&1 &&
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends slurmctld slurmd slurm-client munge \
    >>"$log" 2>&1; then
  echo "slurm: installed $(slurmctld -V)"
else
  echo "slurm: apt-get could not install it ($(tail -n 1 "$log")); tests marked slurm will be skipped"
fi
rm -f "$log"
