"""Files of models, without torch: downloads from a hub, headers, quantized weights kept between loads.

Any process. Knows the file system and the hub's protocol; knows no slots, no runners and no Flask.
"""
