"""The gateway's side of runner processes: forked, talked to, counted, ended.

Gateway process; named threads read what comes back. Imports nothing of ``runner/``: the two meet in ``protocol``.
"""
