"""Sweeps: settings are varied over many runs, and a sampler of Optuna chooses the values from the results so far.

vary.py         which settings are varied, and over which values
objectives.py   the figures that the values are chosen by, all of validation samples
study.py        the study of Optuna: storage, identity, samplers, pruners, heartbeats
worker.py       the runs of this process: started, watched, pruned, continued
show.py         the table of the trials, as text, CSV and HTML, and the command that trains the best one again

Only study.py imports Optuna, which is the extra `sweep`.
"""
