# A transformer as teacher: SegFormer-B0 by HMKD with all labels, on images of 1.5 times the students' resolution. The
# crops repeat after 16 passes, so that its own teacher's outputs can be kept (6 GB).
_base_ = ["b0_all/hmkd.py"]
data = dict(crop_size=(144, 192), scale_range=(0.3, 0.75), distinct_epochs=16)
teacher = dict(cache="work_dirs/camvid_gain/cache", cache_taps=("stage1", "stage2", "stage3", "stage4"))
schedule = dict(max_iters=5000)
eval = dict(interval=1000, scales=(0.525,))
checkpoint = dict(interval=500)
