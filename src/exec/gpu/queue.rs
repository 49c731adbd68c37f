//! Recording dispatches, submitting them in bounded portions, and moving data to and from the device.

use std::{
    collections::VecDeque,
    num::NonZeroU64,
    sync::{Arc, Mutex, PoisonError},
};

use super::{
    Gpu, Tensor,
    buffers::{Block, bytes},
    device::Device,
    pipelines::{Constants, Operator, Params},
};
use crate::{
    error::{Detail, Error, Kind, Result},
    graph::Download,
    ops::Shape,
};

/// Most dispatches of a submission: bounds its time and the memory for parameters.
const MAX_DISPATCHES: usize = 64;

/// A recorded dispatch.
#[derive(Debug)]
struct Dispatch {
    pipeline: wgpu::ComputePipeline,
    bindings: wgpu::BindGroup,
    /// Offset of its parameters in [`Recorder::uniforms`].
    offset: u32,
    workgroups: (u32, u32),
}

/// Recorded dispatches in order, with their parameters.
#[derive(Debug)]
pub(super) struct Recorder {
    dispatches: Vec<Dispatch>,
    /// Parameters of all dispatches, [`Recorder::stride`] bytes each.
    bytes: Vec<u8>,
    /// Receives `bytes` when the dispatches are submitted.
    uniforms: wgpu::Buffer,
    /// Distance in bytes of the parameters of two dispatches.
    stride: usize,
    /// Number of dispatches recorded since the interpreter was opened.
    pub(super) total: u64,
}

impl Recorder {
    pub(super) fn new(device: &Device) -> Result<Self> {
        let stride = device.limits.min_uniform_buffer_offset_alignment.max(256) as usize;
        let uniforms = device.caught(|d| {
            d.create_buffer(&wgpu::BufferDescriptor {
                label: Some("parameters"),
                size: (stride * MAX_DISPATCHES) as u64,
                usage: wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST,
                mapped_at_creation: false,
            })
        })?;
        Ok(Self { dispatches: Vec::new(), bytes: Vec::new(), uniforms, stride, total: 0 })
    }
}

/// One dispatch of a kernel.
pub(super) struct Call<'a, P: Params> {
    /// The operator.
    pub(super) operator: &'static Operator,
    /// Index of the entry point in [`Operator::kernels`].
    pub(super) kernel: usize,
    /// Values of the shader's override constants.
    pub(super) constants: Constants<'a>,
    /// The shader's `Params`.
    pub(super) params: P,
    /// The entry point's storage buffers, in the order of [`super::pipelines::Kernel::uses`].
    pub(super) buffers: &'a [wgpu::BindingResource<'a>],
    /// Number of workgroups; spread over two dimensions if it exceeds the limit of one.
    pub(super) workgroups: u64,
}

impl Gpu {
    /// Records a dispatch.
    ///
    /// # Errors
    /// [`crate::error::Kind::Device`].
    pub(super) fn dispatch<P: Params>(&mut self, call: Call<'_, P>) -> Result<()> {
        let Call { operator, kernel, constants, params, buffers, workgroups } = call;
        let kernel = &operator.kernels[kernel];
        debug_assert_eq!(buffers.len(), kernel.uses.len(), "{} {}", operator.name, kernel.entry);
        let pipeline = self.pipelines.get(operator, kernel, constants)?;
        if self.recorder.dispatches.len() == MAX_DISPATCHES {
            self.submit()?;
        }
        let uniform = wgpu::BindGroupEntry {
            binding: 0,
            resource: wgpu::BindingResource::Buffer(wgpu::BufferBinding {
                buffer: &self.recorder.uniforms,
                offset: 0,
                size: NonZeroU64::new(size_of::<P>() as u64),
            }),
        };
        let storage = (pipeline.uses.iter().zip(buffers)).map(|(&binding, resource)| {
            wgpu::BindGroupEntry { binding, resource: resource.clone() }
        });
        let entries: Vec<_> = std::iter::once(uniform).chain(storage).collect();
        let bindings = self.device.caught(|d| {
            d.create_bind_group(&wgpu::BindGroupDescriptor {
                label: Some(operator.name),
                layout: &pipeline.layout,
                entries: &entries,
            })
        })?;
        let workgroups = self.spread(workgroups)?;
        let recorder = &mut self.recorder;
        recorder.total += 1;
        let offset = recorder.bytes.len();
        recorder.bytes.extend_from_slice(bytemuck::bytes_of(&params));
        recorder.bytes.resize(offset + recorder.stride, 0);
        recorder.dispatches.push(Dispatch {
            pipeline: pipeline.pipeline,
            bindings,
            offset: offset as u32,
            workgroups,
        });
        Ok(())
    }

    /// Splits `count` workgroups over two dimensions; their product may exceed `count`.
    fn spread(&self, count: u64) -> Result<(u32, u32)> {
        let most = u64::from(self.device.limits.max_compute_workgroups_per_dimension);
        let rows = count.div_ceil(most);
        if rows > most {
            let name = &self.device.info.name;
            let resource = format!("workgroups on {name}").into();
            let limit = Some(most * most);
            let detail = Detail::Exhausted { resource, needed: count, limit };
            return Err(Error::new(Kind::Device, detail));
        }
        // Both are at most `most`, a u32.
        Ok((count.div_ceil(rows.max(1)) as u32, rows as u32))
    }

    /// Submits the recorded dispatches.
    ///
    /// # Errors
    /// [`crate::error::Kind::Device`].
    pub(super) fn submit(&mut self) -> Result<()> {
        if self.recorder.dispatches.is_empty() {
            return self.device.check();
        }
        let mut encoder = self.encoder();
        self.encode(&mut encoder);
        self.finish(encoder).map(drop)
    }

    fn encoder(&self) -> wgpu::CommandEncoder {
        self.device.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default())
    }

    /// Moves the recorded dispatches into `encoder`.
    fn encode(&mut self, encoder: &mut wgpu::CommandEncoder) {
        let recorder = &mut self.recorder;
        if recorder.dispatches.is_empty() {
            return;
        }
        // The write takes effect after the last submission, whose dispatches read the old values, and before the next
        // one.
        self.device.queue.write_buffer(&recorder.uniforms, 0, &recorder.bytes);
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
        for dispatch in &recorder.dispatches {
            pass.set_pipeline(&dispatch.pipeline);
            pass.set_bind_group(0, &dispatch.bindings, &[dispatch.offset]);
            pass.dispatch_workgroups(dispatch.workgroups.0, dispatch.workgroups.1, 1);
        }
        drop(pass);
        recorder.dispatches.clear();
        recorder.bytes.clear();
    }

    fn finish(&self, encoder: wgpu::CommandEncoder) -> Result<wgpu::SubmissionIndex> {
        let submission = self.device.queue.submit([encoder.finish()]);
        self.pool.submitted();
        self.device.check().map(|()| submission)
    }

    /// A tensor of `shape` with arbitrary contents; `what` names it in errors.
    ///
    /// # Errors
    /// [`crate::error::Kind::Device`] when it is larger than the device takes or its memory is exhausted.
    pub(super) fn tensor(&mut self, shape: Shape, what: &str) -> Result<Tensor> {
        let block = self.pool.block(&self.device, bytes(shape), &format!("{what}: {shape:?}"))?;
        Ok(Tensor { shape, block: block.into() })
    }

    /// Scratch memory of at least `bytes`.
    ///
    /// # Errors
    /// As [`Gpu::tensor`].
    pub(super) fn scratch(&mut self, bytes: u64, what: &str) -> Result<Block> {
        self.pool.block(&self.device, bytes, what)
    }

    /// A tensor of `shape` filled with `data`.
    ///
    /// # Errors
    /// As [`Gpu::tensor`].
    pub(super) fn write(&mut self, shape: Shape, data: &[f32]) -> Result<Tensor> {
        // The write takes effect before the next submission, so recorded dispatches must be submitted first.
        self.submit()?;
        let tensor = self.tensor(shape, "upload")?;
        self.device.queue.write_buffer(&tensor.block.buffer, 0, bytemuck::cast_slice(data));
        self.device.check()?;
        Ok(tensor)
    }

    /// Begins to copy `x` to the host after all recorded work.
    ///
    /// # Errors
    /// [`crate::error::Kind::Device`].
    pub(super) fn read(&mut self, x: &Tensor) -> Result<Download> {
        if let Some(table) = &mut self.table {
            table.save();
        }
        let size = bytes(x.shape);
        let buffer = self.staging.take(&self.device, size)?;
        let mut encoder = self.encoder();
        self.encode(&mut encoder);
        encoder.copy_buffer_to_buffer(&x.block.buffer, 0, &buffer, 0, size);
        let submission = self.finish(encoder)?;
        // A failure shows when the range below is requested.
        buffer.slice(..).map_async(wgpu::MapMode::Read, |_| ());
        let (device, staging) = (self.device.clone(), self.staging.clone());
        Ok(Download::later(move || {
            device.wait(Some(submission))?;
            let view = buffer.slice(..).get_mapped_range().map_err(|e| {
                device.error(format!("a result of {size} bytes can't be read")).with_source(e)
            })?;
            let values = bytemuck::pod_collect_to_vec(&view[..]);
            drop(view);
            buffer.unmap();
            staging.give(buffer);
            Ok(values)
        }))
    }
}

/// Recycled buffers for reading results on the host.
#[derive(Clone, Debug, Default)]
pub(super) struct Staging {
    /// Buffers that are not in use, the longest idle first; shared with every [`Download`].
    idle: Arc<Mutex<VecDeque<wgpu::Buffer>>>,
}

impl Staging {
    /// Most idle buffers: enough for the levels of a U-Net's result, or for two tiles.
    const MOST: usize = 4;

    /// Largest buffer that is kept.
    const MAX_BYTES: u64 = 1 << 24;

    fn take(&self, device: &Device, size: u64) -> Result<wgpu::Buffer> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let known = idle.iter().position(|buffer| buffer.size() == size);
        if let Some(buffer) = known.and_then(|at| idle.remove(at)) {
            return Ok(buffer);
        }
        drop(idle);
        device.caught(|d| {
            d.create_buffer(&wgpu::BufferDescriptor {
                label: Some("download"),
                size,
                usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
                mapped_at_creation: false,
            })
        })
    }

    fn give(&self, buffer: wgpu::Buffer) {
        if buffer.size() > Self::MAX_BYTES {
            return;
        }
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.push_back(buffer);
        if idle.len() > Self::MOST {
            idle.pop_front();
        }
    }
}
