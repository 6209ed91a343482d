"""Reads the options of an ``/admin`` route, whose body may be absent. Gateway process."""

from typing import TypeVar

from flask import request
from pydantic import ValidationError

from gateway.errors import BadRequest
from gateway.routes import gateway
from gateway.routes.admin_schemas import Options
from gateway.routes.request_body import check_length, read_json
from gateway.routes.validation_errors import validation_error

Given = TypeVar("Given", bound=Options)


def options(model: type[Given]) -> Given:
    """Return the JSON body, which may be absent. :raises BadRequest: for anything but an object of known fields."""
    limit = gateway().settings.max_body
    check_length(request, limit)
    needed = any(field.is_required() for field in model.model_fields.values())
    if not needed and not request.get_data().strip():
        return model()
    data = read_json(request, limit, "{}")
    if unknown := sorted(set(data) - set(model.model_fields)):
        known = ", ".join(sorted(model.model_fields))
        raise BadRequest(f"unknown field {unknown[0]!r}; known: {known}")
    try:
        return model.model_validate(data, strict=True)
    except ValidationError as error:
        raise validation_error(error) from None
