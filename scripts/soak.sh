#!/usr/bin/env bash
# bash scripts/soak.sh [SECONDS] [--seed N] [--ranks SHARE]
# Kills, stops and damages small runs at random for half an hour, or so many seconds; each must end as if nothing had
# happened, bit for bit. The last line says how many faults there were and what was lost; fails if anything was.
set -euo pipefail
source "$(dirname "$0")/_environment.sh"
use_environment requirements.txt
OMP_NUM_THREADS=1 python scripts/soak.py "$@"
