"""The scheduling policy as a pure function: state, event and clock in, actions out. Standard library only.

The gateway's owner thread performs the actions; a simulator or a test may perform them instead.
"""

from gateway.scheduler.policy import decide, next_wakeup
from gateway.scheduler.state import Limits, Model, Phase, Slot, State

__all__ = ["Limits", "Model", "Phase", "Slot", "State", "decide", "next_wakeup"]
