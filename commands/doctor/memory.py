"""Compares the slots' budgets with the memory of this machine or container. Command line's process; loads nothing."""

import psutil

from commands.doctor.finding import Finding, failed, ok, warning
from gateway.memory import devices
from gateway.memory.placement import Placement
from models_registry.catalog import Catalog
from models_registry.spec import ModelSpec
from utils.settings import Settings
from utils.units import format_bytes


class Slots:
    """The slots that the gateway would have, and each model's predicted bytes.

    :raises SettingsError: if the settings name a missing device or slot.
    :raises CatalogError: if a model may use no slot.
    """

    def __init__(self, settings: Settings, catalog: Catalog) -> None:
        self._placement = Placement(settings, catalog)
        self.budgets = {name: place.budget for name, place in self._placement.places.items()}

    def predict_use(self, spec: ModelSpec) -> tuple[str, int]:
        """Return the model's likely slot and its bytes there; 0 if unknown.

        :raises HeaderError: for damaged weights.
        """
        slot = self._placement.expected(spec)
        return slot, self._placement.sizes(spec)[slot]


def find_memory(slots: Slots) -> Finding:
    """Check that the slots' budgets are available."""
    memory = psutil.virtual_memory()
    says = (
        ", ".join(f"the slot {name} may take {format_bytes(budget)}" for name, budget in slots.budgets.items())
        + f"; {format_bytes(memory.available)} of {format_bytes(memory.total)} of RAM are free"
    )
    on_cpu = sum(budget for name, budget in slots.budgets.items() if name.startswith("cpu"))
    limit = devices.total_bytes()
    if limit < memory.total and on_cpu > limit:
        return failed(
            "memory",
            f"{says}, but this container is limited to {format_bytes(limit)}",
            f"SWITCHYARD_SLOT_BUDGET={limit // 2 // 10**6}MB",
        )
    if on_cpu > memory.available:
        return warning("memory", says, "end other programs, or set SWITCHYARD_SLOT_BUDGET to less")
    return ok("memory", says)
