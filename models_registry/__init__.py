"""What can be served: model specs, families and profiles. Pure data: no torch, no processes, no network."""
