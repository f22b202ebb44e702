"""One command in several processes: how they are started, what they tell each other, and how they end together.

launcher.py   starts the processes of `--processes` on this machine
group.py      the processes of a run: connected, compared, and ended with one message
monitor.py    checks whether all of them make progress
channel.py    messages between them
job.py        runs that are trained side by side, which exchange nothing

Results of computations are exchanged by the backend's `Collective`, not by this package.
"""
