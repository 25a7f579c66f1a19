"""The layers of an image classifier in plain NumPy, forward and backward.

They are written from the formulas, batched and for any number of channels, in float32 or float64, so that they can
bear witness against PyTorch's: the tests compare both. Images are [n, channels, height, width].
"""
