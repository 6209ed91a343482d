"""Runner processes as the gateway sees them: forked, talked to, accounted for, ended.

- ``pool``: all runners; starts and ends them for the scheduler.
- ``runner``: one runner's process, its state and its reader thread.
- ``channel``: the pipe to one runner, and its requests in flight.
- ``zygotes``: processes that have opened a model, from which its runners are forked.
- ``forkserver_client``: the process that forks runners (:mod:`forking` does the forking).
- ``environment``: modules and environment variables of runners.
- ``model_states``: what every model is and is doing, in one view of scheduler and runners.
- ``readahead``: reads a model's files into the page cache while its request waits.

Gateway process; reader threads handle what comes back. Imports nothing of ``runner/``: both sides share ``protocol``.
"""
