"""What is made of stored scores: calibrated label sets, relabelling, evaluation, comparisons and sweeps."""
