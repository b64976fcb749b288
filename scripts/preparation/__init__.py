"""The parts of the scripts that prepare data: how published data sets lie in their folders."""
