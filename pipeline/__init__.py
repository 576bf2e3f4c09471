"""How it is made: config, data, training, search, stages, run folder, command line."""

FORMAT = 1
"""Format number of the records stored by this package. 1: first."""
