"""One command on many processes: who starts them, what they tell each other of themselves, and how they end together.

launcher.py   starts the processes of `--processes` on this machine
group.py      the processes of a run: joined, compared, and ended by one message
monitor.py    watches whether every one of them moves
channel.py    the messages between them

What is computed travels through the backend's `Collective`; nothing of it comes by here.
"""
