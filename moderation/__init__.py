"""Checks videos against a policy: frames, questions, answers, verdict. The gateway, the worker and the CLI use it.

Must not know Flask or AWS. It reaches models only through :class:`moderation.asking.Asker`.
"""
