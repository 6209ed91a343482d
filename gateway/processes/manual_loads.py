"""Models loaded and unloaded by hand: by the admin routes, and at start. Each call returns once it is done.

A load by hand waits in the model's queue as requests do. Gateway process, in the caller's thread; knows nothing of
HTTP.
"""

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import TYPE_CHECKING, Any

from gateway.errors import BadRequest, Conflict, Unavailable
from gateway.scheduler import Phase, actions, events
from models_registry.spec import ModelSpec, QuantBits, replica_names, spec_name

if TYPE_CHECKING:
    from gateway.gateway import Gateway


class ManualLoads:
    """What a person asks of a gateway's models."""

    def __init__(self, gateway: "Gateway") -> None:
        self._gateway = gateway

    def load(self, spec: ModelSpec, bits: QuantBits | None, pinned: bool | None) -> dict[str, Any]:
        """Load a model and return its status once it is ready. Joins a load under way; ignores a back-off, and that it
        ran out of memory before.

        ``bits`` stay in force for later loads too; a model loaded with others is unloaded first. ``pinned`` keeps it
        from eviction. Neither is changed if the load fails.

        :raises BadRequest: for bits of a GGUF file, whose quantization is its own.
        :raises Conflict: if it is in use with other bits.
        """
        gateway, chosen = self._gateway, self._gateway.runners.bits
        started, before = time.monotonic(), chosen.get(spec.name)
        if bits is not None and spec.engine == "llama_cpp":
            raise BadRequest(f"{spec.name} is a GGUF file; its quantization cannot be chosen at load")
        try:
            if bits is not None and bits != spec.quant_bits:
                chosen[spec.name] = bits
                self.unload(spec)
                spec = gateway.spec(spec.name)
            if pinned is not None:
                gateway.pin(spec, pinned)
            notes = self._load_all(spec)
        except BaseException:
            chosen.pop(spec.name, None)
            if before is not None:
                chosen[spec.name] = before
            if pinned:
                gateway.pin(spec, spec.pinned)
            raise
        return {**gateway.model_status(spec), "seconds": round(time.monotonic() - started, 3), **notes}

    def _load_all(self, spec: ModelSpec) -> dict[str, str]:
        """Load every replica, on different slots at the same time. One is enough: return a note on others that fail.

        :raises GatewayError: if the first cannot be loaded.
        """
        if spec.replicas == 1:
            self._load_one(spec)
            return {}

        def load(name: str) -> str | None:
            try:
                self._load_one(spec, name)
            except Unavailable as error:
                if name == spec.name:
                    raise
                return f"{name}: {error.details}"
            return None

        names = replica_names(spec)
        with ThreadPoolExecutor(len(names), thread_name_prefix=f"load-{spec.name}") as pool:
            notes = [note for note in pool.map(load, names) if note]
        loaded = f"{len(names) - len(notes)} of {len(names)} replicas are loaded"
        return {"note": "; ".join([loaded, *notes])} if notes else {}

    def _load_one(self, spec: ModelSpec, replica: str | None = None) -> None:
        timeout = self._gateway.settings.load_timeout
        with closing(self._gateway.admit(spec, timeout=timeout, retry=True, replica=replica)) as ticket:
            ticket.wait_for_lease()

    def unload(self, spec: ModelSpec, force: bool = False) -> dict[str, Any]:
        """Unload a model and return what slots were charged for it, once its process has ended. A pin set at load goes
        with it.

        :raises Conflict: if it is in use and ``force`` is not given.
        """
        before = self._gateway.model_status(spec)
        done = self._gateway.owner.ask(events.Unload(spec.name, force))
        ended = [
            action for action in done if isinstance(action, actions.EndRunner) and spec_name(action.model) == spec.name
        ]
        if not ended and before["state"] in (Phase.READY, Phase.LOADING):
            raise Conflict(
                f"{spec.name} is {before['state']} with {before['leases']} request(s) running and "
                f"{before['waiting']} waiting; try again later or send force: true"
            )
        self._gateway.pin(spec, spec.pinned)
        self._gateway.runners.wait_ended([action.load_id for action in ended])
        return {"unloaded": bool(ended), "freed_bytes": _charged(before) if ended else 0}

    def cleanup(self, force: bool = False) -> dict[str, Any]:
        """Evict every idle model and clear scratch nobody uses. Return what was freed."""
        before = {status["name"]: status for status in self._gateway.statuses()}
        done = self._gateway.owner.ask(events.Cleanup(force))
        ended = [action for action in done if isinstance(action, actions.EndRunner)]
        self._gateway.runners.wait_ended([action.load_id for action in ended])
        entries, size = self._gateway.temp.clean()
        names = [action.model for action in ended]
        replicas = {replica["name"]: replica for status in before.values() for replica in status["replicas"]}
        in_use = list(
            dict.fromkeys(
                spec_name(name) for name, replica in replicas.items() if name not in names and replica["leases"]
            )
        )
        return {
            "evicted": list(dict.fromkeys(map(spec_name, names))),
            "freed_bytes": sum(_charged(replicas[name]) for name in names),
            "in_use": in_use,
            "temp_entries_removed": entries,
            "temp_bytes_removed": size,
        }


def _charged(status: dict[str, Any]) -> int:
    """Return what all slots together are charged for a model or a replica."""
    return int(status["bytes"] + sum(status["offloaded"].values()))
