# L = L_task + dynamic * L_dynamic + kd * L_kd, with the authors' defaults for classification (arXiv:2404.12711).
distill = dict(type="dtkd", dynamic=3.0, kd=1.0, temperature=4.0)
