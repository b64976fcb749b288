"""One run: from the config to the trained student."""
