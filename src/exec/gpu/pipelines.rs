//! What the shaders declare, as Rust sees it, and the pipelines made from them.

use std::{collections::HashMap, num::NonZeroU64};

use super::device::Device;
use crate::error::Result;

/// How a shader uses a binding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// The parameter struct.
    Uniform,
    /// A buffer that is read.
    Read,
    /// A buffer that is written, and perhaps read.
    ReadWrite,
}

/// A member of a parameter struct.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// Name, the same in Rust and WGSL.
    pub name: &'static str,
    /// Bytes from the start of the struct.
    pub offset: usize,
    /// "u32" or "f32".
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

/// The GPU's side of one operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Operator {
    /// Name of the operator and of its file in `src/ops`, or of a variant, which begins with it.
    pub name: &'static str,
    /// The files in `shaders/`, without their extension, that the shader is made of.
    pub files: &'static [&'static str],
    /// The shader.
    pub source: &'static str,
    /// Its `Params`.
    pub params: Layout,
    /// Its bindings of group 0, from 0.
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
    ($(#[$meta:meta])* struct $name:ident { $($field:ident: $kind:ident,)* }) => {
        $(#[$meta])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, Default, bytemuck::Pod, bytemuck::Zeroable)]
        struct $name { $($field: $kind,)* }

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

/// Declares an operator: its name, its shader's files if they are not the one of that name, its parameter struct, its
/// storage bindings from 1 on, its entry points.
macro_rules! operator {
    ($static:ident, $name:literal, $($rest:tt)*) => {
        $crate::exec::gpu::pipelines::operator!($static, $name from [$name], $($rest)*);
    };
    (
        $static:ident, $name:literal from [$($file:literal),*], $params:ty, [$($access:ident),*],
        $($entry:literal: [$($use:literal),*]),*
    ) => {
        pub(super) static $static: $crate::exec::gpu::pipelines::Operator =
            $crate::exec::gpu::pipelines::Operator {
                name: $name,
                files: &[$($file),*],
                source: concat!($(include_str!(concat!("../../../shaders/", $file, ".wgsl"))),*),
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

/// A compiled entry point.
#[derive(Clone, Debug)]
pub(super) struct Pipeline {
    /// What runs.
    pub(super) pipeline: wgpu::ComputePipeline,
    /// Parameters at a dynamic offset, then what the kernel uses.
    pub(super) layout: wgpu::BindGroupLayout,
    /// Storage bindings in order.
    pub(super) uses: &'static [u32],
}

/// Override constants of a pipeline, by name.
pub(super) type Constants<'a> = &'a [(&'static str, f64)];

/// Operator, entry point and the values of the override constants.
type Key = (&'static str, &'static str, Vec<u64>);

/// Pipelines, made when first used.
#[derive(Debug, Default)]
pub(super) struct Pipelines {
    modules: HashMap<&'static str, wgpu::ShaderModule>,
    pipelines: HashMap<Key, Pipeline>,
}

impl Pipelines {
    /// The entry point `kernel` of `operator` with `constants`.
    ///
    /// # Errors
    /// [`crate::error::Kind::Device`] when the driver refuses the shader.
    pub(super) fn get(
        &mut self,
        device: &Device,
        operator: &'static Operator,
        kernel: &'static Kernel,
        constants: Constants<'_>,
    ) -> Result<Pipeline> {
        let values = constants.iter().map(|(_, value)| value.to_bits()).collect();
        let key = (operator.name, kernel.entry, values);
        if let Some(pipeline) = self.pipelines.get(&key) {
            return Ok(pipeline.clone());
        }
        let module = match self.modules.get(operator.name) {
            Some(module) => module.clone(),
            None => {
                let source = wgpu::ShaderSource::Wgsl(operator.source.into());
                let descriptor =
                    wgpu::ShaderModuleDescriptor { label: Some(operator.name), source };
                let module = device.caught(|d| d.create_shader_module(descriptor))?;
                self.modules.insert(operator.name, module.clone());
                module
            }
        };
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
        let (pipeline, layout) = device.caught(|d| {
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
                cache: None,
            });
            (pipeline, layout)
        })?;
        let made = Pipeline { pipeline, layout, uses: kernel.uses };
        self.pipelines.insert(key, made.clone());
        Ok(made)
    }
}
