"""The peers: one module per contestant, each with its servers and its Python client loops."""
