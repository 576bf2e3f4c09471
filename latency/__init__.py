"""What it costs: timing, statistics, host, verdicts. Standard library, numpy and a runtime; never torch."""

FORMAT = 1
"""Format number of the records stored by this package. 1: first."""
