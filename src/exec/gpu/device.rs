//! Adapters, the choice among them, and the opened device with its pending errors.

use std::{
    borrow::Cow,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use crate::error::{Error, Kind, Result};

/// Kind of an adapter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AdapterKind {
    /// A GPU with its own memory.
    Discrete,
    /// A GPU that shares the CPU's memory.
    Integrated,
    /// A GPU of a virtual machine.
    Virtual,
    /// A driver that computes on the CPU.
    Software,
    /// Not reported by the driver.
    Other,
}

/// An adapter that [`super::Gpu`] can use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdapterInfo {
    /// Index in [`adapters`], N in `gpu:N`.
    pub index: usize,
    /// Name of the device.
    pub name: String,
    /// Vulkan, Metal or Dx12.
    pub backend: String,
    /// Name and version of the driver.
    pub driver: String,
    /// Kind of the adapter.
    pub kind: AdapterKind,
    /// True for a driver that computes on the CPU; never returned by [`best_real`].
    pub software: bool,
    /// Largest tensor in bytes.
    pub max_tensor_bytes: u64,
    /// Rows and columns of the cooperative matrices for f16, 16 or 8; None if the adapter has none of these sizes.
    pub matrix: Option<usize>,
}

/// Limit of a tensor in bytes: element counts and byte offsets in the shaders have 32 bits, and some drivers fail from
/// 4 GiB on.
const MAX_TENSOR_BYTES: u64 = 1 << 31;

/// Workgroup memory of the convolution on cooperative matrices, in bytes.
const MATRIX_STORAGE: u32 = 20_992;

/// Most storage buffers that an entry point binds.
const STORAGE_BUFFERS: u32 = 6;

/// The adapters of this machine in a fixed order; empty without an adapter or driver.
pub fn adapters() -> Vec<AdapterInfo> {
    list().into_iter().map(|(info, _)| info).collect()
}

/// Index of the best real GPU, discrete before integrated before others; never a software device.
pub fn best_real() -> Option<usize> {
    best(&adapters())
}

/// True if [`super::Gpu::with_f16`] of `index` opens a real GPU; software drivers compute f16 more slowly than f32.
pub fn is_fast_in_f16(index: Option<usize>) -> bool {
    let all = adapters();
    let index = index.or_else(|| best(&all)).unwrap_or(0);
    all.get(index).is_some_and(|a| a.matrix.is_some() && !a.software)
}

/// [`best_real`] among `adapters`.
fn best(adapters: &[AdapterInfo]) -> Option<usize> {
    let rank = |kind| match kind {
        AdapterKind::Discrete => 0,
        AdapterKind::Integrated => 1,
        AdapterKind::Virtual => 2,
        AdapterKind::Other | AdapterKind::Software => 3,
    };
    let real = adapters.iter().filter(|a| !a.software);
    real.min_by_key(|a| (rank(a.kind), a.index)).map(|a| a.index)
}

fn list() -> Vec<(AdapterInfo, wgpu::Adapter)> {
    let backends = wgpu::Backends::VULKAN | wgpu::Backends::METAL | wgpu::Backends::DX12;
    let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle();
    descriptor.backends = backends;
    descriptor.flags = wgpu::InstanceFlags::empty();
    let instance = wgpu::Instance::new(descriptor);
    let usable = |adapter: &wgpu::Adapter| {
        let compute = wgpu::DownlevelFlags::COMPUTE_SHADERS;
        adapter.get_downlevel_capabilities().flags.contains(compute)
            && adapter.limits().max_storage_buffers_per_shader_stage >= STORAGE_BUFFERS
    };
    let found = pollster::block_on(instance.enumerate_adapters(backends));
    (found.into_iter().filter(usable).enumerate())
        .map(|(index, adapter)| (describe(index, &adapter), adapter))
        .collect()
}

fn describe(index: usize, adapter: &wgpu::Adapter) -> AdapterInfo {
    let info = adapter.get_info();
    let kind = match info.device_type {
        wgpu::DeviceType::DiscreteGpu => AdapterKind::Discrete,
        wgpu::DeviceType::IntegratedGpu => AdapterKind::Integrated,
        wgpu::DeviceType::VirtualGpu => AdapterKind::Virtual,
        wgpu::DeviceType::Cpu => AdapterKind::Software,
        wgpu::DeviceType::Other => AdapterKind::Other,
    };
    AdapterInfo {
        index,
        name: info.name,
        backend: format!("{:?}", info.backend),
        driver: format!("{} {}", info.driver, info.driver_info).trim().to_owned(),
        kind,
        software: kind == AdapterKind::Software,
        max_tensor_bytes: max_tensor_bytes(&adapter.limits()),
        matrix: matrix(adapter).ok(),
    }
}

/// Rows and columns of the adapter's cooperative matrices with f16 factors and f32 sums, or the missing feature.
fn matrix(adapter: &wgpu::Adapter) -> Result<usize, String> {
    let features = adapter.features();
    let needed = [
        (wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX, "cooperative matrices"),
        (wgpu::Features::SHADER_F16, "f16 in shaders"),
        (wgpu::Features::SUBGROUP, "subgroups"),
    ];
    for (feature, name) in needed {
        if !features.contains(feature) {
            return Err(format!("it has no {name}"));
        }
    }
    let threads = 4 * adapter.get_info().subgroup_max_size;
    let limits = adapter.limits();
    let most =
        limits.max_compute_invocations_per_workgroup.min(limits.max_compute_workgroup_size_x);
    if threads > most {
        return Err(format!(
            "four of its subgroups are {threads} invocations, and a workgroup takes {most}"
        ));
    }
    let storage = limits.max_compute_workgroup_storage_size;
    if storage < MATRIX_STORAGE {
        return Err(format!(
            "it has {storage} bytes of workgroup memory, and {MATRIX_STORAGE} are needed"
        ));
    }
    choose_matrix(&adapter.cooperative_matrix_properties())
}

/// The largest square of `offered` with f16 factors and f32 sums that a shader exists for.
fn choose_matrix(offered: &[wgpu::CooperativeMatrixProperties]) -> Result<usize, String> {
    use wgpu::CooperativeScalarType::{F16, F32};
    let fits = |size: u32| {
        offered.iter().any(|m| {
            [m.m_size, m.n_size, m.k_size] == [size; 3] && (m.ab_type, m.cr_type) == (F16, F32)
        })
    };
    match [16, 8].into_iter().find(|&size| fits(size)) {
        Some(size) => Ok(size as usize),
        None => {
            let line = |m: &wgpu::CooperativeMatrixProperties| {
                format!("{}x{}x{} {:?} to {:?}", m.m_size, m.n_size, m.k_size, m.ab_type, m.cr_type)
            };
            let all: Vec<String> = offered.iter().map(line).collect();
            Err(format!(
                "its cooperative matrices ({}) are neither 16x16x16 nor 8x8x8 F16 to F32",
                all.join(", ")
            ))
        }
    }
}

/// The opt-in to wgpu's experimental features.
fn experimental() -> wgpu::ExperimentalFeatures {
    #[allow(unsafe_code, reason = "the only way to cooperative matrices")]
    // SAFETY: the caller must accept that such features may have bugs that lead to undefined behaviour. Of them only
    // cooperative matrices are enabled, and only if the adapter lists them and f16 was requested; the one shader that
    // uses them is this crate's own, uses them in uniform control flow, and stays within its workgroup memory.
    unsafe {
        wgpu::ExperimentalFeatures::enabled()
    }
}

fn max_tensor_bytes(limits: &wgpu::Limits) -> u64 {
    limits.max_storage_buffer_binding_size.min(limits.max_buffer_size).min(MAX_TENSOR_BYTES)
}

/// A device in errors: its selector and name.
fn label(index: usize, name: &str) -> String {
    format!("gpu:{index} ({name})")
}

/// Errors of a device that were reported outside of the call that caused them.
#[derive(Debug, Default)]
struct Faults {
    /// Why the device was lost.
    lost: Option<String>,
    /// The first error since the last check.
    error: Option<String>,
}

/// A device with its queue.
#[derive(Debug)]
pub(super) struct Device {
    /// The adapter.
    pub(super) info: AdapterInfo,
    /// Creates resources.
    pub(super) device: wgpu::Device,
    /// The queue that all work of a backend goes through, in order.
    pub(super) queue: wgpu::Queue,
    /// Limits of the adapter.
    pub(super) limits: wgpu::Limits,
    /// Smallest size of a subgroup; 0 without subgroups in shaders.
    pub(super) subgroup_size: u32,
    /// Largest size of a subgroup.
    pub(super) subgroup_max_size: u32,
    /// Rows and columns of the cooperative matrices if it was opened for f16.
    pub(super) matrix: Option<usize>,
    /// Written by the callbacks of `device` from any thread, read by [`Device::check`].
    faults: Arc<Mutex<Faults>>,
    /// Number of objects made by [`Device::caught`].
    pub(super) created: AtomicU64,
}

impl Device {
    /// Opens adapter `index`, or the best one: a real GPU if there is one; with `f16` to use its cooperative matrices.
    ///
    /// # Errors
    /// [`crate::error::Kind::Device`] when it does not exist or can't be opened (the message lists what was found), or
    /// has no cooperative matrices that fit (it says what is missing).
    pub(super) fn open(index: Option<usize>, f16: bool) -> Result<Self> {
        let mut found = list();
        let infos: Vec<AdapterInfo> = found.iter().map(|(info, _)| info.clone()).collect();
        let index = index.or_else(|| best(&infos)).unwrap_or(0);
        if index >= found.len() {
            return Err(Error::device(
                format!("gpu:{index}"),
                format!("no such device; {}", listing(&infos)),
            ));
        }
        let (info, adapter) = found.swap_remove(index);
        let limits = adapter.limits();
        let matrix = if f16 { Some(matrix(&adapter)) } else { None };
        let matrix = matrix.transpose().map_err(|lack| {
            let expected = format!("f32 or auto on {}: {lack}", label(index, &info.name));
            Error::wrong(Kind::Device, "precision", "f16", expected)
        })?;
        let usual =
            adapter.features() & (wgpu::Features::SUBGROUP | wgpu::Features::PIPELINE_CACHE);
        let (subgroup_size, subgroup_max_size) =
            match (usual.contains(wgpu::Features::SUBGROUP), adapter.get_info()) {
                (true, info) => (info.subgroup_min_size, info.subgroup_max_size),
                (false, _) => (0, 0),
            };
        let (features, experimental_features) = match matrix {
            Some(_) => (
                usual
                    | wgpu::Features::SHADER_F16
                    | wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX,
                experimental(),
            ),
            None => (usual, wgpu::ExperimentalFeatures::disabled()),
        };
        let request = adapter.request_device(&wgpu::DeviceDescriptor {
            label: Some("tessera"),
            required_features: features,
            required_limits: limits.clone(),
            experimental_features,
            memory_hints: wgpu::MemoryHints::MemoryUsage,
            trace: wgpu::Trace::Off,
        });
        let (device, queue) = pollster::block_on(request).map_err(|e| {
            let all = listing(&infos);
            Error::device(label(index, &info.name), format!("can't be opened; {all}"))
                .with_source(e)
        })?;
        let faults = Arc::new(Mutex::new(Faults::default()));
        let sink = faults.clone();
        device.on_uncaptured_error(Arc::new(move |e: wgpu::Error| {
            let mut faults = sink.lock().unwrap_or_else(PoisonError::into_inner);
            faults.error.get_or_insert(explain(&e));
        }));
        let sink = faults.clone();
        device.set_device_lost_callback(move |reason, message| {
            let mut faults = sink.lock().unwrap_or_else(PoisonError::into_inner);
            faults.lost.get_or_insert(format!("{reason:?} {message}").trim().to_owned());
        });
        let created = AtomicU64::new(0);
        Ok(Self {
            info,
            device,
            queue,
            limits,
            subgroup_size,
            subgroup_max_size,
            matrix,
            faults,
            created,
        })
    }

    /// Largest tensor in bytes.
    pub(super) fn max_tensor_bytes(&self) -> u64 {
        max_tensor_bytes(&self.limits)
    }

    /// An error of kind [`crate::error::Kind::Device`] that names this device.
    pub(super) fn error(&self, problem: impl Into<Cow<'static, str>>) -> Error {
        Error::device(label(self.info.index, &self.info.name), problem)
    }

    /// Reports errors since the last check.
    ///
    /// # Errors
    /// [`crate::error::Kind::Device`] when the device was lost (from then on, always) or an error was not caught.
    pub(super) fn check(&self) -> Result<()> {
        let mut faults = self.faults.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(why) = &faults.lost {
            return Err(self.error(format!("the device was lost: {why}")));
        }
        match faults.error.take() {
            Some(why) => Err(self.error(why)),
            None => Ok(()),
        }
    }

    /// Runs `make` and returns the errors that wgpu reports for it.
    ///
    /// # Errors
    /// [`crate::error::Kind::Device`].
    pub(super) fn caught<T>(&self, make: impl FnOnce(&wgpu::Device) -> T) -> Result<T> {
        self.check()?;
        self.created.fetch_add(1, Relaxed);
        let filters = [
            wgpu::ErrorFilter::Internal,
            wgpu::ErrorFilter::Validation,
            wgpu::ErrorFilter::OutOfMemory,
        ];
        let scopes = filters.map(|filter| self.device.push_error_scope(filter));
        let made = make(&self.device);
        // Scopes are popped in reverse order.
        let mut first = None;
        for scope in scopes.into_iter().rev() {
            first = pollster::block_on(scope.pop()).or(first);
        }
        self.check()?;
        match first {
            None => Ok(made),
            Some(e) => Err(self.error(explain(&e))),
        }
    }

    /// Blocks until the work up to `submission`, or all submitted work, is done.
    ///
    /// # Errors
    /// [`crate::error::Kind::Device`] when the device was lost meanwhile.
    pub(super) fn wait(&self, submission: Option<wgpu::SubmissionIndex>) -> Result<()> {
        self.check()?;
        let wait = wgpu::PollType::Wait { submission_index: submission, timeout: None };
        // A device that is lost during the wait makes wgpu panic instead of returning an error.
        let poll = || self.device.poll(wait);
        match catch_unwind(AssertUnwindSafe(poll)) {
            Ok(Ok(_)) => self.check(),
            failed => {
                self.check()?;
                let error = self.error("waiting for submitted work failed");
                Err(match failed {
                    Ok(Err(e)) => error.with_source(e),
                    _ => error,
                })
            }
        }
    }
}

fn explain(e: &wgpu::Error) -> String {
    match e {
        wgpu::Error::OutOfMemory { source } => format!("out of memory: {source}"),
        other => other.to_string(),
    }
}

fn listing(infos: &[AdapterInfo]) -> String {
    if infos.is_empty() {
        return "no Vulkan, Metal or DX12 device was found".to_owned();
    }
    let line = |a: &AdapterInfo| {
        let software = if a.software { ", software" } else { "" };
        format!("gpu:{} is {} ({}{software})", a.index, a.name, a.backend)
    };
    format!("found: {}", infos.iter().map(line).collect::<Vec<_>>().join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn adapter(index: usize, kind: AdapterKind) -> AdapterInfo {
        AdapterInfo {
            index,
            name: format!("device {index}"),
            backend: "Vulkan".into(),
            driver: String::new(),
            kind,
            software: kind == AdapterKind::Software,
            max_tensor_bytes: 0,
            matrix: None,
        }
    }

    /// A software device is never the best; a discrete GPU comes before an integrated one, whatever their order.
    #[test]
    fn best_adapter_is_a_real_gpu() {
        use AdapterKind::{Discrete, Integrated, Software};
        assert_eq!(best(&[]), None);
        assert_eq!(best(&[adapter(0, Software)]), None);
        let all = [Software, Integrated, Discrete, Discrete];
        let all: Vec<_> = all.iter().enumerate().map(|(i, &k)| adapter(i, k)).collect();
        assert_eq!(best(&all), Some(2));
        assert_eq!(best(&all[..2]), Some(1));
    }

    /// The larger supported size with f16 factors and f32 sums is chosen; without one the error names all that are
    /// offered.
    #[test]
    fn cooperative_matrix_size_is_chosen_from_the_list() {
        use wgpu::CooperativeScalarType::{F16, F32};
        let m = |m_size, n_size, k_size, ab_type, cr_type| wgpu::CooperativeMatrixProperties {
            m_size,
            n_size,
            k_size,
            ab_type,
            cr_type,
            saturating_accumulation: false,
        };
        let eight = m(8, 8, 8, F16, F32);
        let sixteen = m(16, 16, 16, F16, F32);
        assert_eq!(choose_matrix(&[eight, sixteen]), Ok(16));
        assert_eq!(choose_matrix(&[m(16, 16, 16, F32, F32), eight]), Ok(8));
        let others = [m(16, 8, 16, F16, F32), m(16, 16, 16, F16, F16), m(8, 8, 8, F32, F32)];
        let lack = choose_matrix(&others).unwrap_err();
        for word in ["16x8x16 F16 to F32", "16x16x16 F16 to F16", "8x8x8 F32 to F32"] {
            assert!(lack.contains(word), "{lack}");
        }
        assert!(choose_matrix(&[]).is_err());
    }

    #[test]
    fn missing_adapter_error_lists_the_found_ones() {
        let error = Device::open(Some(1000), false).unwrap_err();
        assert_eq!(error.kind(), crate::error::Kind::Device);
        let message = error.to_string();
        assert!(message.contains("gpu:1000"), "{message}");
        assert!(message.contains("found"), "{message}");
        for a in adapters() {
            assert!(message.contains(&a.name), "{message}");
        }
    }
}
