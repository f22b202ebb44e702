"""Campaigns that try to break the product.

They give it hostile inputs (`fuzz`), end it at every file operation (`crash`), end or mislead one of its processes
(`processes`), and give its convolutions operands in any memory layout (`convolutions`).
"""

import os

# A process that is forked must have one thread.
for _name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"
