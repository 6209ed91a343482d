"""Messages between the gateway and a runner. Standard library only: both sides import it, and neither imports the
other.
"""
