"""Small helpers that both kinds of process may use. Nothing here knows about Flask, slots or torch."""
