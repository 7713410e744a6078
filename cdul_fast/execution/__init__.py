"""How a run is carried out: sessions over an output folder, and the local, device and Ray engines in them.

One implementation of the work (``work``), three ways to drive it. What a photo or a score *is* lives in the
other rooms.
"""
