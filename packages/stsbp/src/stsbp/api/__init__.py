"""What `stsbp` offers to programs in Python: training, runs, and networks from other loops as runs.

The names are in `stsbp` itself. Nothing here prints to standard output, ends the process, or leaves settings of the
process changed.
"""
