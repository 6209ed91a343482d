"""The gateway from the outside: every test talks HTTP to one that runs in processes of its own."""
