"""Metrics under named protocols.

A metric's name carries its protocol, and, where a spatial window or a network looks at the image, the size of the
image (``ssim_gaussian_256x176``, ``lpips_alex_32x32``). A metric whose network does not hold its canonical weights has
another name (``lpips_alex_random_weights_32x32``), so that it can never be taken for the published one.
"""
