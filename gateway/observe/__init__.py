"""What the gateway tells about itself: metrics and traces.

:class:`~gateway.observe.metrics.Metrics` is told facts by the few places that know them; nobody else counts. Gateway
process; decides nothing.
"""
