"""Ray Serve around the core library: who runs where, how pools are found, and what the outside sees. Nothing here decides a token."""
