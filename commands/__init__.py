"""The verbs of the command line, one module each. They run in a process of their own, or start the gateway's."""
