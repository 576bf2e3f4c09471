"""What it costs: timing, statistics, host, verdicts. Standard library, numpy and a runtime where it times (scipy for
comparisons, at home); never torch."""

FORMAT = 2
"""Format number of the records stored by this package. 1: first. 2: samples in blocks, interleaved with the control's;
peak memory of the process itself; batch, pinned CPUs, plan and clock are told."""
