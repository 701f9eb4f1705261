"""StyleGAN2 building blocks in plain PyTorch: equalised and modulated convolutions, FIR resampling, UNet blocks."""
