"""``/openapi.json`` and ``/docs``: the API's description, made of what checks requests and shapes answers."""
