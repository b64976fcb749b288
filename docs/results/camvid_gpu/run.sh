#!/usr/bin/env bash
# The study for six minutes of a GPU, from the repository's root: bash docs/results/camvid_gpu/run.sh. It needs data/camvid
# (SegNet split) and pretrained/resnet18.pth. It trains a teacher, then all students with one seed more each time, JOBS at
# once. When the MINUTES have passed it stops; started again, it resumes. The table: work_dirs/camvid_gpu/students/table.md.
# OPTIONS go to every run, for a trial: ITERS=20 TEACHER_ITERS=20 SEEDS=1 OPTIONS="train.batch_size=1 schedule.warmup_iters=0".
set -euo pipefail
HERE=docs/results/camvid_gpu OUT=work_dirs/camvid_gpu
ITERS=${ITERS:-2000} TEACHER_ITERS=${TEACHER_ITERS:-1500} SEEDS=${SEEDS:-5} JOBS=${JOBS:-5} MINUTES=${MINUTES:-6}
read -ra OPTIONS <<< "${OPTIONS:-}"
limited() {  # COMMAND: stops it, and this script, when the time is up
    local left=$((60 * MINUTES - SECONDS))
    if ((left <= 0)) || ! timeout --kill-after=20 $left "$@"; then
        echo "stopped after $SECONDS s; the same command resumes" >&2
        exit 1
    fi
}

awk 'NR % 8 == 1' data/camvid/train.txt > data/camvid/train_8th.txt
[ -f $OUT/teacher/student.safetensors ] ||
    limited python train_kd.py $HERE/teacher.py --work-dir $OUT/teacher --resume auto \
        --cfg-options schedule.max_iters="$TEACHER_ITERS" "${OPTIONS[@]}"
for ((last = 0; last < SEEDS; last++)); do
    limited python scripts/compare.py $HERE/hmkd.py --budget-iters "$ITERS" --jobs "$JOBS" --out $OUT/students \
        --methods docs/results/camvid_gain/methods/{kd,cirkd,dist}.py configs/_base_/methods/hmkd.py \
        --seeds "$(seq -s, 0 "$last")" --cfg-options log.interval=50 "${OPTIONS[@]}"
done
