//! The GPU backend: wgpu on Vulkan, Metal or DX12, one WGSL file per operator in `shaders/`, f32 and NHWC. Convolutions
//! have variants, selected by the adapter's features, by measurements and by the requested precision.
//!
//! Guarantees: results depend on the inputs alone, so that the same adapter and driver give the same bits. Sums run in
//! a fixed order, so that a pixel's value does not depend on its position, except in layers that never run on a tile
//! ([`Conv2d::domain`](crate::ops::Conv2d)). All failures of the device (none found, out of memory, lost) are errors of kind
//! [`crate::error::Kind::Device`], never panics.
//!
//! [`Gpu`] records dispatches and submits them in batches of bounded size, at the latest when a result is downloaded.
//! A convolution applies upsampling as it loads and adds the other term of a weighted sum as it stores ([`FUSION`]).
//! Memory of dropped tensors is recycled; parameters are uploaded on first use, in the layout of their kernel. Graphs
//! that are run again and again (`program.rs`) are prepared once, so that a denoising step only encodes and submits.

mod attention;
mod buffers;
mod cache;
mod conv;
mod device;
mod matrix;
mod pipelines;
mod pointwise;
mod program;
mod queue;
mod reduce;
mod resample;
mod run;

use std::{
    collections::HashMap,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering::Relaxed},
};

pub use self::{
    buffers::Tensor,
    conv::ConvVariant,
    device::{AdapterInfo, AdapterKind, adapters, best_real, is_fast_in_f16},
    pipelines::{Access, Field, Kernel, Layout, Operator},
};
use crate::{
    error::Result,
    exec,
    graph::{Backend, Download, Fused, Fusion, Graph, Input, check_inputs, check_upload},
    ops::{Shape, crop, weights::Weights},
};

/// All operators that have a shader.
pub fn operators() -> impl Iterator<Item = &'static Operator> {
    let modules = [
        attention::OPERATORS,
        conv::OPERATORS,
        matrix::OPERATORS,
        pointwise::OPERATORS,
        reduce::OPERATORS,
        resample::OPERATORS,
    ];
    modules.into_iter().flatten().copied()
}

/// Capabilities of the shaders of convolutions.
pub const FUSION: Fusion = Fusion { norms: false, ..Fusion::ALL };

/// Invocations per workgroup of kernels with one invocation per item.
const WORKGROUP: usize = 64;

/// The GPU backend on one adapter, with a model's weights. [`Gpu::with_weights`] makes one for another model on the same
/// device.
#[derive(Debug)]
pub struct Gpu {
    device: Arc<device::Device>,
    shared: Arc<Shared>,
    owner: program::Owner,
    /// The program that is being recorded.
    recording: Option<program::Recording>,
    weights: Arc<Weights>,
    /// Parameters on the device by name, in the layout of their kernel.
    parameters: HashMap<String, wgpu::Buffer>,
    /// The requested convolution variant.
    conv: Option<ConvVariant>,
    fusion: Fusion,
    /// Most bytes of transformed tiles of [`ConvVariant::Winograd`] at a time.
    winograd_bytes: usize,
    /// Most scores of attention over pixels at a time, at least those of one query.
    scores: usize,
}

/// The parts of a device that the backends of all models on it use.
#[derive(Debug)]
struct Shared {
    pipelines: pipelines::Pipelines,
    pool: buffers::Pool,
    staging: queue::Staging,
    recorder: Mutex<queue::Recorder>,
    programs: Mutex<program::Programs>,
    /// The autotuner's choices; None: no autotuning.
    table: Mutex<Option<conv::tune::Table>>,
}

impl Shared {
    fn recorder(&self) -> MutexGuard<'_, queue::Recorder> {
        self.recorder.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn programs(&self) -> MutexGuard<'_, program::Programs> {
        self.programs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn table(&self) -> MutexGuard<'_, Option<conv::tune::Table>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Gpu {
    /// A backend on adapter `index` of [`adapters`] with the parameters `weights`; without an index on the best
    /// adapter, a real GPU if there is one.
    ///
    /// # Errors
    /// [`crate::error::Kind::Device`] when there is no such adapter (the message lists what was found) or it can't be
    /// opened.
    pub fn new(index: Option<usize>, weights: Arc<Weights>) -> Result<Self> {
        Self::on(device::Device::open(index, false)?, weights)
    }

    /// As [`Gpu::new`], with convolutions in f16 and f32 sums on cooperative matrices; those of fewer than 16 input or
    /// output channels stay f32.
    ///
    /// # Errors
    /// As [`Gpu::new`], and [`crate::error::Kind::Device`] naming the feature that the adapter lacks.
    pub fn with_f16(index: Option<usize>, weights: Arc<Weights>) -> Result<Self> {
        Self::on(device::Device::open(index, true)?, weights)
    }

    fn on(device: device::Device, weights: Arc<Weights>) -> Result<Self> {
        let device = Arc::new(device);
        let shared = Shared {
            pipelines: pipelines::Pipelines::new(device.clone()),
            pool: buffers::Pool::default(),
            staging: queue::Staging::default(),
            recorder: Mutex::new(queue::Recorder::new(&device)?),
            programs: Mutex::default(),
            table: Mutex::default(),
        };
        Ok(Self {
            device,
            shared: shared.into(),
            owner: program::Owner::new(),
            recording: None,
            weights,
            parameters: HashMap::new(),
            conv: None,
            fusion: FUSION,
            winograd_bytes: exec::winograd::SCRATCH_BYTES,
            scores: attention::SCORES,
        })
    }

    /// A backend on the same device with the parameters `weights`. Both share its queue, pipelines, memory and
    /// measurements; their work runs in the order of the calls.
    #[must_use]
    pub fn with_weights(&self, weights: Arc<Weights>) -> Self {
        Self {
            device: self.device.clone(),
            shared: self.shared.clone(),
            owner: program::Owner::new(),
            recording: None,
            weights,
            parameters: HashMap::new(),
            ..*self
        }
    }

    /// Starts to compile all shaders in the background instead of each on first use, and turns on autotuning: the first
    /// time a shape of convolution is met, the variants that give the same bits are timed.
    ///
    /// The driver's pipeline cache and the measurements are kept in the folder `cache`, if given. Files that are
    /// damaged or belong to another device or driver are ignored; failures to write are logged.
    #[must_use]
    pub fn prepared(self, cache: Option<&Path>) -> Self {
        let folder = cache.map(|directory| cache::Folder::new(directory, &self.device.info));
        let mut kernels = conv::compiled_ahead(&self.device);
        let needed = |operator: &&Operator| {
            let unused = *operator == &matrix::CONV2D_PACK16 && !self.is_f16();
            !unused && !conv::OPERATORS.contains(operator)
        };
        let others = operators().filter(needed);
        kernels.extend(others.flat_map(|operator| {
            operator.kernels.iter().map(move |kernel| (operator, kernel, Vec::new()))
        }));
        self.shared.pipelines.prepare(kernels, folder.as_ref());
        *self.shared.table() = Some(conv::tune::Table::open(folder, self.device.info.software));
        self
    }

    /// Uses `variant` for all convolutions that the device and the layer allow it for; [`ConvVariant::Cooperative`]
    /// needs [`Gpu::with_f16`].
    #[must_use]
    pub fn with_convolutions(mut self, variant: ConvVariant) -> Self {
        self.conv = Some(variant);
        self
    }

    /// Fuses what both `fusion` and [`FUSION`] allow. It does not change a bit.
    #[must_use]
    pub fn with_fusion(mut self, fusion: Fusion) -> Self {
        self.fusion = fusion.and(FUSION);
        self
    }

    /// True if convolutions are computed in f16.
    pub fn is_f16(&self) -> bool {
        self.device.matrix.is_some()
    }

    /// Number of dispatches recorded since it was opened.
    pub fn dispatches(&self) -> u64 {
        self.shared.recorder().total
    }

    /// Number of objects of the device (buffers, bind groups, pipelines) that were made since it was opened.
    pub fn allocations(&self) -> u64 {
        self.device.created.load(Relaxed)
    }

    /// The adapter of this backend.
    pub fn adapter(&self) -> &AdapterInfo {
        &self.device.info
    }

    /// The parameter `name` on the device; `prepare` packs it on first use.
    fn parameter<T: bytemuck::Pod>(
        &mut self,
        name: &str,
        prepare: impl FnOnce(&Weights) -> Result<Vec<T>>,
    ) -> Result<wgpu::Buffer> {
        if let Some(buffer) = self.parameters.get(name) {
            return Ok(buffer.clone());
        }
        let values = prepare(&self.weights)?;
        let buffer = self.device.caught(|d| {
            d.create_buffer(&wgpu::BufferDescriptor {
                label: Some(name),
                size: size_of_val(&values[..]) as u64,
                usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST,
                mapped_at_creation: false,
            })
        })?;
        self.device.queue.write_buffer(&buffer, 0, bytemuck::cast_slice(&values));
        self.parameters.insert(name.to_owned(), buffer.clone());
        Ok(buffer)
    }
}

/// `extent` as the u32 of a shader; tensors are too small for a larger one.
fn to_u32(extent: usize) -> u32 {
    u32::try_from(extent).unwrap_or(u32::MAX)
}

impl Backend for Gpu {
    type Tensor = Tensor;

    fn shape(&self, x: &Tensor) -> Shape {
        x.shape()
    }

    fn upload(&mut self, shape: Shape, data: &[f32]) -> Result<Tensor> {
        check_upload(shape, data.len())?;
        self.write(shape, data)
    }

    fn download_later(&mut self, x: &Tensor) -> Result<Download> {
        self.read_recorded(x)
    }

    fn run(&mut self, graph: &Graph, inputs: Vec<Tensor>) -> Result<Vec<Tensor>> {
        check_inputs(graph, inputs.iter().map(Tensor::shape))?;
        // A panic that a caller has caught may have left one.
        self.recording = None;
        self.shrink_programs();
        let fused = Fused::new(graph, self.fusion);
        run::run(self, &fused, inputs)
    }

    fn evaluate(&mut self, graph: &Graph, inputs: &[Input<'_, Tensor>]) -> Result<Vec<Download>> {
        check_inputs(graph, inputs.iter().map(|input| input.shape(self)))?;
        for input in inputs {
            match *input {
                Input::Host(shape, data) => check_upload(shape, data.len())?,
                Input::Window(x, window) => {
                    crop::output_shape(x.shape(), window)?;
                }
            }
        }
        // As in `run`.
        self.recording = None;
        self.run_program(graph, inputs)
    }
}

impl Drop for Gpu {
    /// Frees the programs of its model; the device may live on.
    fn drop(&mut self) {
        self.shared.programs().clear(Some(self.owner));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        error::Kind,
        graph::testing::apply,
        ops::{Conv2d, Domain, Factors, Op, weights::Param},
    };

    /// The best adapter with `weights`, or None and a message; without an adapter a failure if `TESSERA_REQUIRE_GPU` is 1, as
    /// `tests/common/gpu.rs`.
    pub(super) fn gpu(weights: Arc<Weights>) -> Option<Gpu> {
        if !adapters().is_empty() {
            return Some(Gpu::new(None, weights).unwrap());
        }
        let required = std::env::var("TESSERA_REQUIRE_GPU").is_ok_and(|v| v == "1");
        assert!(
            !required,
            "TESSERA_REQUIRE_GPU=1, but this machine has no Vulkan, Metal or DX12 adapter"
        );
        println!("skipped: no Vulkan, Metal or DX12 adapter on this machine");
        None
    }

    /// After the device is lost every call returns an error of kind `Device` that says so: uploads, graphs and downloads.
    #[test]
    fn lost_device_is_an_error() {
        let layer = Conv2d {
            name: "layer".into(),
            in_channels: 1,
            out_channels: 1,
            kernel: 1,
            domain: Domain::Whole,
        };
        let mut weights = Weights::default();
        for (name, shape) in layer.params() {
            weights.insert(name, Param { shape, data: vec![1.0] });
        }
        let Some(mut gpu) = gpu(Arc::new(weights)) else { return };
        let shape = Shape::new(1, 2, 2, 1);
        let x = gpu.upload(shape, &[1.0; 4]).unwrap();
        let y = apply(&mut gpu, &Op::Silu, std::slice::from_ref(&x)).unwrap();
        let begun = gpu.download_later(&y).unwrap();
        gpu.device.device.destroy();
        // Destruction is seen at the next look at the device.
        let _ = gpu.device.device.poll(wgpu::PollType::Poll);
        let sum = Op::WeightedAdd(Factors::Fixed(1.0, 1.0));
        let mut failures = vec![
            begun.wait().map(drop),
            gpu.download(&y).map(drop),
            gpu.upload(shape, &[1.0; 4]).map(drop),
            gpu.download(&x).map(drop),
            apply(&mut gpu, &sum, &[x.clone(), y]).map(drop),
        ];
        for op in [Op::Silu, Op::UpsampleNearest2, Op::Conv2d(layer)] {
            failures.push(apply(&mut gpu, &op, std::slice::from_ref(&x)).map(drop));
        }
        for failure in failures {
            let error = failure.unwrap_err();
            assert_eq!(error.kind(), Kind::Device, "{error}");
            assert!(error.to_string().contains("lost"), "{error}");
        }
    }
}
