//! The denoiser of a pyramid, as the samplers see it: EDM's preconditioning around the U-Net, on a device.

use crate::{
    engine::{Cancel, Event, Observer, picture::check_finite, plan::Plan},
    error::Result,
    model::{
        arch::Arch,
        checkpoint::Checkpoint,
        precond::Precond,
        sampler::{self, Denoise, Latent},
        unet,
    },
    ops::Ops,
};

/// D(z; sigma) of every level: c_skip z + c_out F(c_in z; c_noise), with a sigma per level.
struct Denoiser<'a, O: Ops> {
    ops: &'a mut O,
    arch: &'a Arch,
    cancel: &'a Cancel,
}

impl<O: Ops> Denoise for Denoiser<'_, O> {
    fn denoise(&mut self, z: &[Latent], sigma: f64) -> Result<Vec<Latent>> {
        self.cancel.check()?;
        let precond = Precond::new(&self.arch.noise, sigma);
        let mut scaled = Vec::with_capacity(z.len());
        for (l, latent) in z.iter().enumerate() {
            let c_in = precond.levels[l].c_in as f32;
            let data: Vec<f32> = latent.data.iter().map(|v| c_in * v).collect();
            scaled.push(self.ops.upload(latent.shape, &data)?);
        }
        let raw = unet::predict(self.ops, self.arch, &scaled, precond.c_noise)?;
        drop(scaled);
        let mut out = Vec::with_capacity(z.len());
        for (l, (latent, raw)) in z.iter().zip(&raw).enumerate() {
            let (c_skip, c_out) = (precond.levels[l].c_skip as f32, precond.levels[l].c_out as f32);
            let raw = self.ops.download(raw)?;
            let data = latent.data.iter().zip(&raw).map(|(z, f)| c_skip * z + c_out * f).collect();
            let denoised = Latent { shape: latent.shape, data };
            check_finite(&denoised, l, "denoising")?;
            out.push(denoised);
        }
        Ok(out)
    }
}
