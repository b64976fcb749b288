# FitNet on the four pairs of taps that HMKD compares, with plain KD beside it.
distill = dict(
    methods=[
        dict(type="fitnet", pairs=[(f"stage{i}", f"stage{i}") for i in (1, 2, 3, 4)], pixels="inside"),
        dict(type="kd", pixels="inside"),
    ]
)
