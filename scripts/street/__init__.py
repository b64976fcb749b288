"""The painter behind ``scripts.street.scene``: a canvas, the things of a street, and where they stand."""
