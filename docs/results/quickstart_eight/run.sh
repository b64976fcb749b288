#!/usr/bin/env bash
# Eight fresh seeds of the quick start, from the repository's root: bash docs/results/quickstart_eight/run.sh. It resumes.
set -euo pipefail
export OMP_NUM_THREADS=1
python scripts/make_synthetic.py --out data/many --train 200 --val 50 --size 96 128
python scripts/make_synthetic.py --out data/few --train 10 --val 50 --size 96 128 --seed 1
python scripts/make_synthetic.py --out data/unlabelled --train 190 --val 1 --size 96 128 --seed 2  # labels are not read
[ -f work_dirs/quickstart/teacher/student.safetensors ] ||
    python train_kd.py configs/demo/teacher.py --work-dir work_dirs/quickstart/teacher --resume auto
python scripts/compare.py --configs configs/demo/{unlabelled,hmkd}.py docs/results/quickstart_eight/kd.py \
    --budget-iters 400 --seeds 10,11,12,13,14,15,16,17 --jobs "${JOBS:-1}" --out work_dirs/quickstart_eight
