"""Networks of the pyramid diffusion model and the mathematics around them: Arch, blocks, preconditioning, sampler."""
