"""Chooses the facts that get an entry in the journal, and words the entries.

The places that know a fact call it, each in its own thread. Gateway process; decides nothing.
"""

import time
from typing import Any

from gateway.observe.journal import Journal, Kind
from gateway.processes.runner import RunnerProcess
from gateway.scheduler import actions, events
from models_registry.spec import spec_name
from utils.units import format_bytes

_ENDINGS: dict[str, tuple[Kind, str]] = {
    "evicted": ("evicted", "{name} was evicted"),
    "expired": ("expired", "{name} was unloaded: its keep-alive ran out"),
    "unloaded": ("unloaded", "{name} was unloaded by hand"),
    "cleanup": ("cleanup", "{name} was unloaded by a cleanup"),
    "load_timeout": ("load_failed", "{name} was ended: the load took too long"),
    "cannot_fit": ("load_failed", "{name} was ended as soon as it was loaded"),
    "moved": ("moved", "{name} was ended, to be loaded in another way"),
    "out_of_memory": ("out_of_memory", "{name} was ended: memory ran out"),
}
"""By the reason of an end. A shutdown has one entry for all runners, see ``gateway_stopping``."""

_STEPS: dict[str, tuple[Kind, str]] = {
    "retried": ("out_of_memory", "what could be freed was freed, and it was tried again"),
    "smaller_batch": ("degraded", "it answers fewer requests at once"),
    "smaller_piece": ("degraded", "it reads prompts in smaller pieces"),
    "larger_batch": ("out_of_memory", "{name} answers more requests at once again: there is memory"),
    "reloaded": ("out_of_memory", "idle models go, and it is loaded again"),
    "small_batch": ("degraded", "it will make one answer at a time"),
    "offload": ("degraded", "a part of it will be in RAM, which is slower"),
    "cpu": ("degraded", "it will run on the CPU, which is slower"),
    "refused": ("out_of_memory", "nothing is left to be tried, and the request is refused"),
    "replaced": ("restart", "its process may not have recovered, and is replaced"),
}
"""By the step of the degradation or of a runner. ``ended`` has no entry here: ``runner_ending`` writes the cause."""


class JournalWriter:
    """Writes into one journal."""

    def __init__(self, journal: Journal) -> None:
        self.journal = journal
        self._begun: dict[str, float] = {}
        self._crashed: set[str] = set()

    # -- the owner thread ----------------------------------------------------------------------------------------------

    def load_started(self, handle: RunnerProcess) -> None:
        """Record the start of a load."""
        self._begun[handle.load_id] = time.monotonic()
        again = handle.load.name in self._crashed
        self._crashed.discard(handle.load.name)
        text = f"Loading {handle.load.name} on {handle.slot}"
        text += ", in place of a runner that was lost" if again else ""
        self.journal.add_entry(
            "restart" if again else "load",
            _sentence(text, handle.note),
            handle.load.name,
            handle.slot,
            brief=text,
            load_id=handle.load_id,
            predicted_bytes=handle.account.predicted,
        )

    def runner_ending(self, action: actions.EndRunner, handle: RunnerProcess) -> None:
        """Record that a runner is ended on purpose, and why."""
        if action.reason not in _ENDINGS:
            return
        kind, words = _ENDINGS[action.reason]
        text = brief = words.format(name=handle.load.name)
        if action.newcomer:
            text += f" to make room for {action.newcomer}"
        facts: dict[str, Any] = {"newcomer": action.newcomer} if action.newcomer else {}
        facts |= {"offloaded_bytes": handle.offloaded.reserved} if handle.offloaded else {}
        self.journal.add_entry(
            kind,
            _sentence(text, handle.starved or action.why),
            handle.load.name,
            handle.slot,
            brief=brief,
            reason=action.reason,
            load_id=handle.load_id,
            bytes=handle.account.reserved,
            **facts,
        )

    # -- a runner's reader thread --------------------------------------------------------------------------------------

    def runner_event(self, event: events.Event, handle: RunnerProcess | None) -> None:
        """Record that a runner was loaded, or has ended."""
        match event:
            case events.Loaded(load_id, size, offloaded) if handle is not None:
                seconds = time.monotonic() - self._begun.get(load_id, time.monotonic())
                text = f"{handle.load.name} is ready on {handle.slot} after {seconds:.1f} s, with {format_bytes(size)}"
                phases = handle.loaded.phases if handle.loaded else {}
                in_ram: dict[str, Any] = {"offloaded_bytes": sum(offloaded.values())} if offloaded else {}
                self.journal.add_entry(
                    "loaded",
                    _sentence(text, ""),
                    handle.load.name,
                    handle.slot,
                    load_id=load_id,
                    bytes=size,
                    predicted_bytes=handle.account.predicted,
                    from_zygote=handle.from_zygote,
                    seconds=round(seconds, 3),
                    phases={phase: round(took, 3) for phase, took in phases.items()},
                    **in_ram,
                )
            case events.LoadFailed(load_id, cause):
                name = handle.load.name if handle else spec_name(load_id.rpartition("-")[0])
                text = f"Loading {name} failed"
                self.journal.add_entry(
                    "load_failed",
                    _sentence(text, cause),
                    name,
                    handle.slot if handle else None,
                    brief=text,
                    load_id=load_id,
                    cause=cause,
                )
                self._begun.pop(load_id, None)
            case events.RunnerLost(load_id, cause) if handle is not None:
                self._crashed.add(handle.load.name)
                text = f"The runner of {handle.load.name} was lost"
                self.journal.add_entry(
                    "crash",
                    _sentence(text, cause),
                    handle.load.name,
                    handle.slot,
                    brief=text,
                    load_id=load_id,
                    cause=cause,
                )
                self._begun.pop(load_id, None)
            case events.RunnerEnded(load_id):
                self._begun.pop(load_id, None)
            case _:
                pass

    # -- any thread ----------------------------------------------------------------------------------------------------

    def memory_step_taken(self, model: str, stage: str, step: str) -> None:
        """Record the step taken after a model ran out of memory in ``stage`` (``load`` or ``generate``)."""
        if step not in _STEPS:
            return
        kind, words = _STEPS[step]
        doing = "was loaded" if stage == "load" else "answered"
        text = words.format(name=model) if "{name}" in words else f"{model} ran out of memory while it {doing}: {words}"
        self.journal.add_entry(kind, _sentence(text, ""), model, stage=stage, step=step)

    def pin_changed(self, model: str, pinned: bool) -> None:
        """Record that somebody pinned a model, or let it go."""
        words = "is pinned: it stays loaded" if pinned else "is no longer pinned: it may make room for others"
        self.journal.add_entry("pinned" if pinned else "unpinned", f"{model} {words}.", model)

    def gateway_started(self, profile: str, models: int, slots: list[str]) -> None:
        """Record that the gateway begins to serve."""
        self.journal.add_entry(
            "start",
            f"Switchyard has started: profile {profile}, {models} models, on {', '.join(slots)}.",
            profile=profile,
            slots=slots,
        )

    def gateway_stopping(self) -> None:
        self.journal.add_entry(
            "stop", "Switchyard is stopping: requests under way are finished, no new ones are taken."
        )

    def forkserver_replaced(self, status: int) -> None:
        """Record that the forkserver ended, and all runners with it."""
        self.journal.add_entry(
            "restart",
            "The process that starts runners ended unexpectedly, its runners with it; another was started.",
            status=status,
        )


def _sentence(text: str, more: str) -> str:
    text = f"{text}; {more}" if more else text
    return text if text.endswith((".", "!", "?")) else f"{text}."
