"""Split inference: the image tower in two halves on two devices, and where to cut it."""
