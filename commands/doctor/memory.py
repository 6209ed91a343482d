"""The slots' budgets beside what this machine, or this container, has. Command line's process; loads nothing."""

from pathlib import Path

import psutil

from commands.doctor.finding import Finding, failed, ok, warning
from gateway.memory.placement import Placement
from models_registry.catalog import Catalog
from models_registry.spec import ModelSpec
from utils.settings import Settings
from utils.units import format_bytes

_CGROUP = Path("/sys/fs/cgroup/memory.max")


class Slots:
    """The slots that the gateway would have, and what a model would take of them.

    :raises SettingsError: if the settings name a device or a slot that is not there.
    :raises CatalogError: if a model may use no slot.
    """

    def __init__(self, settings: Settings, catalog: Catalog) -> None:
        self._placement = Placement(settings, catalog)
        self.budgets = {name: place.budget for name, place in self._placement.places.items()}

    def predict_use(self, spec: ModelSpec) -> tuple[str, int]:
        """Return the slot a model is likely to go to and the bytes it takes there; 0 where that is not known.

        :raises HeaderError: for damaged weights.
        """
        slot = self._placement.expected(spec)
        return slot, self._placement.sizes(spec)[slot]


def find_memory(slots: Slots) -> Finding:
    """Say what the slots may take, and whether it is there."""
    memory = psutil.virtual_memory()
    says = (
        ", ".join(f"the slot {name} may take {format_bytes(budget)}" for name, budget in slots.budgets.items())
        + f"; {format_bytes(memory.available)} of {format_bytes(memory.total)} of RAM are free"
    )
    on_cpu = sum(budget for name, budget in slots.budgets.items() if name.startswith("cpu"))
    limit = cgroup_limit()
    if limit is not None and on_cpu > limit:
        return failed(
            "memory",
            f"{says}, but this container is limited to {format_bytes(limit)}",
            f"SWITCHYARD_SLOT_BUDGET={limit // 2 // 10**6}MB",
        )
    if on_cpu > memory.available:
        return warning("memory", says, "end other programs, or set SWITCHYARD_SLOT_BUDGET to less")
    return ok("memory", says)


def cgroup_limit(file: Path = _CGROUP) -> int | None:
    """Return the bytes that this container may take, or None where nothing limits it."""
    try:
        text = file.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None
