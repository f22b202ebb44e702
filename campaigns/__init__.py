"""Campaigns that try to break the product: hostile inputs (`fuzz`), and death at every file operation (`crash`)."""

import os

# A process that is forked must have one thread.
for _name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"
