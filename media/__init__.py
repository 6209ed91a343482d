"""Images, audio and video from clients: told by content, fetched with a guard, decoded apart.

``incoming`` turns what a request carried into bytes, ``decode`` turns bytes into ``.npy`` files. Nothing is
imported here, so that the decoder process starts quickly. Knows nothing of HTTP, models or torch.
"""
