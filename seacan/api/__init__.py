"""The Docker Engine API: one module a resource, each with ``routes(engine) -> list[web.RouteDef]``.

Handlers translate between HTTP and :class:`seacan.engine.engine.Engine` and do nothing else. Paths are written without
the version prefix (``/containers/json``): :mod:`seacan.api.application` strips it and says which it was
(:func:`seacan.api.http.api_version`). Errors are raised (:mod:`seacan.errors`); nobody but the application turns them
into answers.
"""
