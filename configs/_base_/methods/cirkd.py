# L = L_task + kd * L_kd + batch * L_batch + pixel * L_pixel + region * L_region, as published (CVPR 2022).
# The memories hold 19 classes x 22000 vectors of 512 channels: 0.86 GB, also in every checkpoint.
distill = dict(
    type="cirkd", kd=1.0, batch=1.0, pixel=0.1, region=0.1, temperature=1.0, tau=0.1,
    pixel_queue=20000, region_queue=2000, pixel_keys=4096, region_keys=1024,
)  # fmt: skip
