"""The processes that decode untrusted bytes, and what runs in them.

``process`` decodes one request's media to files, fresh or forked by ``forkserver``; ``frame_process`` sends frames of
one video, which it reads over a socket. Both limit themselves before they look at a byte.

``container`` opens, measures, enters and decodes a file of sound or video; ``completeness`` tells whether it ends
early; ``remote_file`` is a file that another process reads. ``audio``, ``images`` and ``video`` make a request's
arrays. ``frames`` spreads and scales frames; ``stretches`` looks at a whole video with them. ``failures`` turns what
libraries raise into refusals.

Imported by decoder processes only. Knows no network, no models, no settings.
"""
