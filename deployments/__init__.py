"""Ray Serve around the core library: who runs where, how pools are found, what the outside sees. No token is decided here."""
