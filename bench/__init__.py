"""The benchmarks: the same work done by TreeScale and by its peers in one interleaved run."""
