"""The measurements of `stsbp benchmark`: the limits of this machine, and how close a backend comes to them.

Every time is compared with a lower bound that is measured in the same run, alternating with it (timing.py). Times of
two separate runs on a shared machine cannot be compared. kernels.py, step.py and data.py each contain a group of
measurements.
"""
