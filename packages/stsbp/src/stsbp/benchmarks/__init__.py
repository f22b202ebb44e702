"""What this machine can do at most, and where a backend stands against it: the measurements of `stsbp benchmark`.

Every time is compared with a floor that was measured in the same run, the two taken in turn (timing.py), because times
of two runs on a shared machine cannot be compared. kernels.py, step.py and data.py hold one group of measurements each.
"""
