"""One thread per process, set before PyTorch is imported: the tests' tensors are tiny, and several processes run."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
