"""The gateway's side of runner processes: forks them, talks to them, counts them, ends them.

Gateway process; named threads read what comes back. Imports nothing of ``runner/``: the two meet in ``protocol``.
"""
