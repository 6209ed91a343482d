"""Files of models, without torch: fetched from a hub, their headers read, quantized weights kept between loads.

Any process. Knows the file system and the hub's protocol; nothing of slots, runners or Flask.
"""
