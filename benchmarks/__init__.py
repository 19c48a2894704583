"""pytest-benchmark comparisons against what torch users would otherwise run."""
