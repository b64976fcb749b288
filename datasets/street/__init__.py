"""The painter behind ``datasets.synthetic``: a canvas, the things of a street, and where they stand."""
