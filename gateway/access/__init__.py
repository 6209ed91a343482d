"""Who may ask what, how often and how much: keys, roles, sessions, quotas, rates and usage.

Gateway process, in the thread of the request. Knows Flask's current request; nothing of routes and models' answers.
"""
