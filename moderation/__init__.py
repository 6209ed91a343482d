"""Videos held to a policy: which frames, which questions, what the answers come to. Used by the gateway and the worker.

Knows neither Flask nor AWS, and of models only that they can be asked (:class:`moderation.asking.Asker`).
"""
