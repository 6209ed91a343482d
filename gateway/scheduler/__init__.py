"""The scheduling policy: a pure function from state, event and clock to actions. Standard library only.

``decide`` takes in one event and returns what to do; ``next_wakeup`` says when time alone will change something. The
files, from the outside in:

- ``owner``: the scheduler's thread in the gateway process. It alone touches the state. It performs the actions and
  waits for none of them. The simulator and the tests stand in its place. No other file here knows threads or clocks.
- ``events``, ``actions``: what can happen, and what the policy can ask for.
- ``policy``: ``decide`` itself, as a numbered decision tree with a fast path for a ready model.
- ``admission``: one request: reserve, submit, grant, release, refuse. ``estimate``: what Retry-After says.
- ``runners``: one runner: start, loaded, failed, ended, unloaded.
- ``eviction``: which models end so that another can be loaded. ``anticipation``: which idle ones are worth keeping.
- ``replicas``: where the requests for a model with replicas wait, and when one more is loaded.
- ``state``, ``model``: the state as plain data.

Other threads send events to the owner and read through it; they never touch the state themselves.
"""

from gateway.scheduler.model import Limits, Model, Phase, Spec
from gateway.scheduler.policy import decide, next_wakeup
from gateway.scheduler.state import State

__all__ = ["Limits", "Model", "Phase", "Spec", "State", "decide", "next_wakeup"]
