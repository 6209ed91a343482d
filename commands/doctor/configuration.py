"""Reads settings and catalog as the gateway does, and reports what would stop its start."""

from pathlib import Path
from typing import Any

from commands.doctor.finding import Finding, failed, ok
from commands.serve import check_names
from models_registry.catalog import Catalog, CatalogError, load_catalog
from utils.settings import Settings, SettingsError, load_settings


def find_configuration(
    config: Path | None, flags: dict[str, Any]
) -> tuple[list[Finding], Settings | None, Catalog | None]:
    """Return the findings, and settings and catalog if they are valid."""
    try:
        settings = load_settings(config, **flags)
    except SettingsError as error:
        return [failed("settings", str(error), "docs/settings.md has every setting and what it takes")], None, None
    given = sorted(settings.model_fields_set)
    findings = [ok("settings", f"given: {', '.join(given)}" if given else "all are the defaults")]
    try:
        catalog = load_catalog(settings)
        check_names(settings, catalog)
    except (CatalogError, SettingsError) as error:
        return [*findings, failed("catalog", str(error), "docs/models.md says what an entry has")], settings, None
    names = ", ".join(catalog.names)
    return [*findings, ok("catalog", f"profile {catalog.profile}: {names}")], settings, catalog
