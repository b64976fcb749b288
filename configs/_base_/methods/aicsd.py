# L = L_task + relation * L_relation + pixel * L_pixel. The authors' relation weight is 9500, for a term of another
# scale (losses/aicsd.py). They change the weights during training; ITERS is schedule.max_iters:
#   curriculum = dict(
#       task=dict(type="linear", iters=ITERS),
#       aicsd_relation=dict(type="linear", iters=ITERS),
#       aicsd_pixel=dict(type="linear", start=1.0, end=0.0, iters=ITERS),
#   )
distill = dict(type="aicsd", relation=250.0, pixel=10.0, temperature=1.0)
