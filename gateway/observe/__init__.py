"""What the gateway records and shows: metrics, the journal, traces, the last minutes, snapshots, the memory report.

Others call :class:`~gateway.observe.metrics.Metrics` and :class:`~gateway.observe.journal_writer.JournalWriter` with
facts. The other modules read the present state when they are asked. Gateway process; decides nothing and knows nothing
of HTTP.
"""
