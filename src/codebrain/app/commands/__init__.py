"""One file, one command; each has ``register(app)`` and imports heavy packages inside its function."""
