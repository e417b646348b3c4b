"""One thread per process, set before PyTorch is imported: the tests' tensors are tiny, and several processes run."""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # whatever was set: with more, sums of floats depend on the number of processes
