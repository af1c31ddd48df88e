"""The ASGI application: endpoints are found, guarded, called and answered."""
