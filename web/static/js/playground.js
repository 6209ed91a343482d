// Playground.
