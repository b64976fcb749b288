# L = L_task + target * L_target + nontarget * L_nontarget: published for CIFAR-100 (CVPR 2022), none for segmentation.
distill = dict(type="dkd", target=1.0, nontarget=8.0, temperature=4.0)
