#!/usr/bin/env bash
# Lints and tests everything: makes .venv with the development requirements first.
#   bash scripts/test.sh                     all
#   bash scripts/test.sh -m "not slow"       the fast ones; any pytest argument works
set -euo pipefail
source "$(dirname "$0")/_environment.sh"
use_environment requirements.txt tests/requirements.txt
ruff check .
ruff format --check .
# Two test processes, each with whole files, so that what a file's tests share is made once. One thread each: tensors are
# small, threads cost more than they bring.
OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} python -m pytest -n 2 --dist loadfile "$@"
