// Events.
