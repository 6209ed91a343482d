"""A workstation in virtual time, for the scheduling policy: traces, the machine, other policies, and bounds.

The policy is the gateway's own ``decide`` and ``next_wakeup``. Nothing sleeps and nothing is measured by a clock: a
seed gives the same figures on any machine.
"""
