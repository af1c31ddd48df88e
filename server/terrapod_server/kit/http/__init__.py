"""HTTP: the ASGI application, routes, guard, limits, bodies and connections."""
