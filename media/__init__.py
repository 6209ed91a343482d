"""Images, sound and video from clients: recognized by content, fetched with a guard, decoded in a process of its own.

Gateway process: ``incoming`` turns what a request carries into bytes, with ``fetch`` and ``addresses`` for URLs;
``sniff`` says what the bytes look like; ``client`` has them decoded to ``.npy`` files, by a process that ``process``
starts or ``forkserver_client`` has forked. Both sides: ``messages`` (what passes between them), ``limits``, ``errors``.
Decoder processes: ``decoder/``.

Nothing is imported here, so that decoder processes start quickly. Knows nothing of HTTP, models or torch.
"""
