# The teacher sees the same crops in 1.5 times the student's resolution. It takes three times as long as the student, so
# its outputs are kept: the crops repeat after 16 passes. Each seed needs a folder of its own (teacher.cache, 6 GB).
_base_ = ["hmkd.py"]
data = dict(distinct_epochs=16)
teacher = dict(scale=1.5, cache="work_dirs/camvid_gain/cache", cache_taps=("stage1", "stage2", "stage3", "stage4"))
