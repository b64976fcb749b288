#!/usr/bin/env bash
# bash scripts/eval.sh CONFIG [GPUS] CHECKPOINT [arguments of eval.py...]
# Evaluates on this machine with GPUS processes (default: one for each GPU; one where there is none).
#   bash scripts/eval.sh configs/demo/hmkd.py work_dirs/hmkd/student.safetensors
#   bash scripts/eval.sh configs/hmkd/camvid_b4_r18.py 4 work_dirs/camvid_b4_r18/best.pt --split test --flip
#   bash scripts/eval.sh configs/hmkd/camvid_b4_r18.py 4 --teacher --json teacher.json
set -euo pipefail
source "$(dirname "$0")/_launch.sh"
launch eval.py "$@"
