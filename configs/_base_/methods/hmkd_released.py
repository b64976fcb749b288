# HMKD in its released form: all three terms, and the teacher side learns from the distillation loss itself. The
# release's weight of 1 on its relation's sum, over 4 images of 360 x 480, is this weight on our mean.
distill = dict(type="hmkd", feature=1.0, logit=1.0, relation=1.3e5, anchor=None)
