"""``/openapi.json`` and ``/docs``: the API's description, made of the models that check requests and answers."""
