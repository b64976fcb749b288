#!/usr/bin/env bash
# The whole study, from the repository's root: bash docs/results/camvid_gain/run.sh. It needs data/camvid (SegNet split) and
# pretrained/resnet18.pth. Stopped, it resumes when it is started again. JOBS runs at a time, one thread each.
set -euo pipefail
export OMP_NUM_THREADS=1
HERE=docs/results/camvid_gain OUT=work_dirs/camvid_gain METHODS=configs/_base_/methods
JOBS=${JOBS:-2} SEEDS=${SEEDS:-10,11,12,13,14,15}

awk 'NR % 8 == 1' data/camvid/train.txt > data/camvid/train_8th.txt
python scripts/pack_dataset.py $HERE/b0_few/hmkd.py --out data/camvid_packed_gain --splits train val unlabelled
python scripts/pack_dataset.py $HERE/b0_all/hmkd.py --out data/camvid_packed_all

train() {  # NAME CONFIG OPTIONS: a teacher
    [ -f $OUT/"$1"/student.safetensors ] ||
        python train_kd.py "$2" --work-dir $OUT/"$1" --resume auto --cfg-options "${@:3}"
}
compare() {  # PAIR ARGUMENTS
    python scripts/compare.py $HERE/"$1"/hmkd.py --budget-iters 4000 --jobs "$JOBS" --out $OUT/"$1" \
        --seeds "$SEEDS" "${@:2}" --cfg-options log.interval=200
}
train teacher_r18 $HERE/teacher_r18.py data.packed=data/camvid_packed_all
compare b0_few --methods $METHODS/hmkd.py $HERE/methods/*.py --configs $HERE/b0_few/{kd_labelled,self_training}.py
compare b0_all --methods $METHODS/hmkd.py $HERE/methods/*.py
train teacher_b0 $HERE/b0_all/hmkd.py schedule.max_iters=8000 log.panel_images=0
compare r18_few --methods $METHODS/hmkd.py $HERE/methods/*.py
compare r18_all --methods $METHODS/hmkd.py $HERE/methods/*.py
