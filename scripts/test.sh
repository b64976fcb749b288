#!/usr/bin/env bash
# Lints and tests everything: makes .venv with the development requirements first.
#   bash scripts/test.sh                     all
#   bash scripts/test.sh -m "not slow"       the fast ones; any pytest argument works
set -euo pipefail
source "$(dirname "$0")/_environment.sh"
use_environment requirements.txt tests/requirements.txt
ruff check .
ruff format --check .
# Small tensors: threads cost more than they bring, and two-process runs share the cores.
OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} python -m pytest "$@"
