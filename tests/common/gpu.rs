//! The GPU of a test: one device at a time, and one policy where there is none.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tessera::{
    exec::gpu::{AdapterInfo, Gpu, adapters},
    ops::weights::Weights,
};

/// Held by a test while it has a device: software drivers take all cores for one.
pub(crate) type Turn = MutexGuard<'static, ()>;

/// The first adapter that `fits`. Without one, a line that says so; where the environment variable `required` is 1, a failure.
pub(crate) fn adapter(
    what: &str,
    required: &str,
    fits: impl Fn(&AdapterInfo) -> bool,
) -> Option<(AdapterInfo, Turn)> {
    static DEVICE: Mutex<()> = Mutex::new(());
    let turn = DEVICE.lock().unwrap_or_else(PoisonError::into_inner);
    let found = adapters().into_iter().find(fits);
    if found.is_none() {
        let required_here = std::env::var(required).is_ok_and(|v| v == "1");
        assert!(!required_here, "{required}=1, but this machine has no {what}");
        println!("skipped: this machine has no {what}");
    }
    Some((found?, turn))
}

/// A Vulkan, Metal or DX12 adapter of any kind, to be opened by the program; without one as [`gpu`].
pub(crate) fn any_adapter() -> Option<(AdapterInfo, Turn)> {
    adapter("Vulkan, Metal or DX12 adapter", "TESSERA_REQUIRE_GPU", |_| true)
}

/// The best adapter, opened with `weights`. None where there is no adapter, but a failure with `TESSERA_REQUIRE_GPU=1`.
pub(crate) fn gpu(weights: Arc<Weights>) -> Option<(Gpu, Turn)> {
    let (_, turn) = any_adapter()?;
    Some((Gpu::new(None, weights).unwrap(), turn))
}
