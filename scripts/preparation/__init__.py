"""The parts of the scripts that prepare data: published data sets, pairs, splits, classes, masks, recipes."""
