//! Declarations of the shaders in Rust, and the pipelines compiled from them.

use std::{
    collections::HashMap,
    hash::Hash,
    num::NonZeroU64,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::Instant,
};

use rayon::prelude::*;

use super::{
    cache::{Compiled, Folder},
    device::Device,
};
use crate::error::Result;

/// Kind of a binding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// The parameter struct.
    Uniform,
    /// A buffer that is read.
    Read,
    /// A buffer that is written and may be read.
    ReadWrite,
}

/// A member of a parameter struct.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// Name, the same in Rust and WGSL.
    pub name: &'static str,
    /// Bytes from the start of the struct.
    pub offset: usize,
    /// Type: "u32" or "f32".
    pub kind: &'static str,
}

/// A parameter struct.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Bytes, a multiple of 16.
    pub size: usize,
    /// Members in order.
    pub fields: &'static [Field],
}

/// An entry point of a shader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// Name of the function.
    pub entry: &'static str,
    /// Storage bindings that it uses, in ascending order; binding 0, the parameters, is used by all.
    pub uses: &'static [u32],
}

/// The shader of one operator, or of one variant of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Operator {
    /// Name of the operator, which is that of its file in `src/ops`, or of a variant, which begins with it.
    pub name: &'static str,
    /// The files in `shaders/`, without extension, that are joined to the shader.
    pub files: &'static [&'static str],
    /// WGSL source.
    pub source: &'static str,
    /// Layout of its `Params`.
    pub params: Layout,
    /// Its bindings in group 0, from 0 on.
    pub bindings: &'static [Access],
    /// Its entry points.
    pub kernels: &'static [Kernel],
}

/// A Rust struct whose bytes are a shader's `Params`.
pub(super) trait Params: bytemuck::Pod {
    /// Its members.
    const LAYOUT: Layout;
}

/// Declares the parameter struct of a shader with its [`Layout`].
macro_rules! params {
    ($(#[$meta:meta])* $vis:vis struct $name:ident { $($(#[$doc:meta])* $field:ident: $kind:ident,)* }) => {
        $(#[$meta])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, Default, bytemuck::Pod, bytemuck::Zeroable)]
        $vis struct $name { $($(#[$doc])* $vis $field: $kind,)* }

        impl $crate::exec::gpu::pipelines::Params for $name {
            const LAYOUT: $crate::exec::gpu::pipelines::Layout =
                $crate::exec::gpu::pipelines::Layout {
                    size: size_of::<$name>(),
                    fields: &[$($crate::exec::gpu::pipelines::Field {
                        name: stringify!($field),
                        offset: std::mem::offset_of!($name, $field),
                        kind: stringify!($kind),
                    },)*],
                };
        }
    };
}

/// Declares an operator: its name, its shader's files if not only the one of that name, its parameter struct, its
/// storage bindings from 1 on, its entry points with the bindings that they use.
macro_rules! operator {
    ($static:ident, $name:literal, $($rest:tt)*) => {
        $crate::exec::gpu::pipelines::operator!($static, $name from [$name], $($rest)*);
    };
    (
        $static:ident, $name:literal from [$($file:literal),*], $params:ty, [$($access:ident),*],
        $($entry:literal: [$($use:literal),*]),*
    ) => {
        pub(in crate::exec::gpu) static $static: $crate::exec::gpu::pipelines::Operator =
            $crate::exec::gpu::pipelines::Operator {
                name: $name,
                files: &[$($file),*],
                source: concat!($(include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/shaders/", $file, ".wgsl"))),*),
                params: <$params as $crate::exec::gpu::pipelines::Params>::LAYOUT,
                bindings: &[
                    $crate::exec::gpu::pipelines::Access::Uniform,
                    $($crate::exec::gpu::pipelines::Access::$access,)*
                ],
                kernels: &[$($crate::exec::gpu::pipelines::Kernel {
                    entry: $entry,
                    uses: &[$($use),*],
                }),*],
            };
    };
}

pub(super) use {operator, params};

/// A compiled entry point with its layout.
#[derive(Clone, Debug)]
pub(super) struct Pipeline {
    /// The pipeline.
    pub(super) pipeline: wgpu::ComputePipeline,
    /// Bind group layout: parameters at a dynamic offset, then the storage bindings in `uses`.
    pub(super) layout: wgpu::BindGroupLayout,
    /// Storage bindings in order.
    pub(super) uses: &'static [u32],
}

/// Override constants of a pipeline, by name.
pub(super) type Constants<'a> = &'a [(&'static str, f64)];

/// A pipeline to compile ahead of use: operator, entry point and override constants.
pub(super) type Wanted = (&'static Operator, &'static Kernel, Vec<(&'static str, f64)>);

/// Operator, entry point and the values of the override constants.
type Key = (&'static str, &'static str, Vec<u64>);

/// A map of lazily made values: the first caller of a key makes it, concurrent callers of that key block.
#[derive(Debug)]
struct Once<K, T>(Mutex<HashMap<K, Arc<Mutex<Option<T>>>>>);

impl<K, T> Default for Once<K, T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Eq + Hash, T: Clone> Once<K, T> {
    /// The value of `key`, made by `make` if there is none; after a failure the next caller tries again.
    fn get(&self, key: K, make: impl FnOnce() -> Result<T>) -> Result<T> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let place = all.entry(key).or_default().clone();
        drop(all);
        let mut place = place.lock().unwrap_or_else(PoisonError::into_inner);
        match &*place {
            Some(made) => Ok(made.clone()),
            None => Ok(place.insert(make()?).clone()),
        }
    }
}

/// All pipelines of a device, compiled on first use or ahead of it.
#[derive(Debug)]
pub(super) struct Pipelines {
    compiler: Arc<Compiler>,
    /// The thread that compiles ahead.
    ahead: Mutex<Option<JoinHandle<()>>>,
    /// Set to end `ahead`.
    stop: Arc<AtomicBool>,
}

impl Pipelines {
    /// Compiles every pipeline on first use.
    pub(super) fn new(device: Arc<Device>) -> Self {
        Self {
            compiler: Compiler::new(device).into(),
            ahead: Mutex::default(),
            stop: Arc::default(),
        }
    }

    /// Starts to compile `kernels` on all cores, with the driver's pipeline cache from `folder`; the cache is written
    /// back at the end. Only the first call has an effect.
    pub(super) fn prepare(&self, kernels: Vec<Wanted>, folder: Option<&Folder>) {
        let mut ahead = self.ahead.lock().unwrap_or_else(PoisonError::into_inner);
        if ahead.is_some() {
            return;
        }
        if let Some(compiled) =
            folder.and_then(|folder| Compiled::open(&self.compiler.device, folder))
        {
            // It is empty: this is the first call.
            let _ = self.compiler.compiled.set(compiled);
        }
        let (shared, stopped) = (self.compiler.clone(), self.stop.clone());
        let work = move || {
            let began = Instant::now();
            kernels.par_iter().with_max_len(1).for_each(|(operator, kernel, constants)| {
                if !stopped.load(Relaxed)
                    && let Err(error) = shared.get(operator, kernel, constants)
                {
                    // Reported when the pipeline is used.
                    tracing::debug!("{}.{}: {error}", operator.name, kernel.entry);
                }
            });
            tracing::debug!("{} kernels in {:?}", kernels.len(), began.elapsed());
            if let Some(compiled) = shared.compiled.get() {
                compiled.save();
            }
        };
        let thread = thread::Builder::new().name("pipelines".into()).spawn(work);
        let thread = thread.inspect_err(|e| tracing::warn!("no thread that compiles ahead: {e}"));
        *ahead = thread.ok();
    }

    /// The entry point `kernel` of `operator` with `constants`.
    ///
    /// # Errors
    /// [`crate::error::Kind::Device`] when the driver refuses the shader.
    pub(super) fn get(
        &self,
        operator: &'static Operator,
        kernel: &'static Kernel,
        constants: Constants<'_>,
    ) -> Result<Pipeline> {
        self.compiler.get(operator, kernel, constants)
    }
}

impl Drop for Pipelines {
    /// Joins the compile thread, so that no driver code runs when the process ends.
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        let ahead = self.ahead.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Some(thread) = ahead.take() {
            // A panic was reported where it happened.
            let _ = thread.join();
        }
    }
}

/// Compiles pipelines from any thread.
#[derive(Debug)]
struct Compiler {
    device: Arc<Device>,
    /// The driver's cache, if pipelines are compiled ahead.
    compiled: OnceLock<Compiled>,
    modules: Once<&'static str, wgpu::ShaderModule>,
    pipelines: Once<Key, Pipeline>,
}

impl Compiler {
    fn new(device: Arc<Device>) -> Self {
        let (modules, pipelines) = (Once::default(), Once::default());
        Self { device, compiled: OnceLock::new(), modules, pipelines }
    }

    fn get(
        &self,
        operator: &'static Operator,
        kernel: &'static Kernel,
        constants: Constants<'_>,
    ) -> Result<Pipeline> {
        let values = constants.iter().map(|(_, value)| value.to_bits()).collect();
        let key = (operator.name, kernel.entry, values);
        self.pipelines.get(key, || self.compile(operator, kernel, constants))
    }

    fn compile(
        &self,
        operator: &'static Operator,
        kernel: &'static Kernel,
        constants: Constants<'_>,
    ) -> Result<Pipeline> {
        let module = self.modules.get(operator.name, || {
            let source = wgpu::ShaderSource::Wgsl(operator.source.into());
            let descriptor = wgpu::ShaderModuleDescriptor { label: Some(operator.name), source };
            self.device.caught(|d| d.create_shader_module(descriptor))
        })?;
        let entry = |binding: u32, ty, size, dynamic| wgpu::BindGroupLayoutEntry {
            binding,
            visibility: wgpu::ShaderStages::COMPUTE,
            ty: wgpu::BindingType::Buffer {
                ty,
                has_dynamic_offset: dynamic,
                min_binding_size: size,
            },
            count: None,
        };
        let size = NonZeroU64::new(operator.params.size as u64);
        let mut entries = vec![entry(0, wgpu::BufferBindingType::Uniform, size, true)];
        for &binding in kernel.uses {
            let read_only = operator.bindings.get(binding as usize) == Some(&Access::Read);
            let ty = wgpu::BufferBindingType::Storage { read_only };
            entries.push(entry(binding, ty, None, false));
        }
        let label = format!("{}.{}", operator.name, kernel.entry);
        let (pipeline, layout) = self.device.caught(|d| {
            let layout = d.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
                label: Some(&label),
                entries: &entries,
            });
            let all = d.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
                label: Some(&label),
                bind_group_layouts: &[Some(&layout)],
                immediate_size: 0,
            });
            let pipeline = d.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
                label: Some(&label),
                layout: Some(&all),
                module: &module,
                entry_point: Some(kernel.entry),
                compilation_options: wgpu::PipelineCompilationOptions {
                    constants,
                    // Every kernel writes its workgroup memory before it reads it.
                    zero_initialize_workgroup_memory: false,
                },
                cache: self.compiled.get().map(|compiled| &compiled.cache),
            });
            (pipeline, layout)
        })?;
        Ok(Pipeline { pipeline, layout, uses: kernel.uses })
    }
}
