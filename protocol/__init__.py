"""What the gateway and a runner say to each other. Standard library only: both sides import it, neither the other."""
