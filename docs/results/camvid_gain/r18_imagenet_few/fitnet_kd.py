# FitNet on the same four pairs of stages, and plain KD.
_base_ = ["hmkd.py"]
distill = dict(
    _delete_=True,
    methods=[
        dict(type="fitnet", pairs=[(f"stage{i}", f"stage{i}") for i in (1, 2, 3, 4)], pixels="inside"),
        dict(type="kd", pixels="inside"),
    ],
)
