# HMKD in its released form: all three terms, and the teacher side learns from the distillation loss itself.
distill = dict(type="hmkd", feature=1.0, logit=1.0, relation=1.0, anchor=None)
