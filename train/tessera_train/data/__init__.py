"""Pictures and latents on disk: reading, preparing, memory-mapped arrays."""
