"""StyleGAN2 and SAGAN building blocks in plain PyTorch: convolutions, norms, resampling, UNet and residual blocks."""
