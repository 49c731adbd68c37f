//! Recording dispatches, submitting them in bounded portions, and moving data to and from the device.

use std::{
    collections::VecDeque,
    num::NonZeroU64,
    sync::{Arc, Mutex, PoisonError},
};

use super::{
    Gpu, Tensor,
    buffers::{Block, bytes, check_size},
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
    /// Offset of its parameters in [`Portion::uniforms`].
    offset: u32,
    workgroups: (u32, u32),
}

/// Dispatches that are submitted together.
#[derive(Debug)]
pub(super) struct Portion {
    dispatches: Vec<Dispatch>,
    /// Their parameters.
    uniforms: wgpu::Buffer,
}

impl Portion {
    fn new(device: &Device, stride: usize) -> Result<Self> {
        let uniforms = device.caught(|d| {
            d.create_buffer(&wgpu::BufferDescriptor {
                label: Some("parameters"),
                size: (stride * MAX_DISPATCHES) as u64,
                usage: wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST,
                mapped_at_creation: false,
            })
        })?;
        Ok(Self { dispatches: Vec::new(), uniforms })
    }

    /// Adds the dispatches to `encoder`.
    pub(super) fn encode(&self, encoder: &mut wgpu::CommandEncoder) {
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
        for dispatch in &self.dispatches {
            pass.set_pipeline(&dispatch.pipeline);
            pass.set_bind_group(0, &dispatch.bindings, &[dispatch.offset]);
            pass.dispatch_workgroups(dispatch.workgroups.0, dispatch.workgroups.1, 1);
        }
    }

    /// Number of dispatches.
    pub(super) fn len(&self) -> u64 {
        self.dispatches.len() as u64
    }

    /// Bytes of its buffer.
    pub(super) fn bytes(&self) -> u64 {
        self.uniforms.size()
    }
}

/// Recorded dispatches in order, with their parameters.
#[derive(Debug)]
pub(super) struct Recorder {
    /// The dispatches that are neither submitted nor in `finished`.
    portion: Portion,
    /// Parameters of `portion`, [`Recorder::stride`] bytes each.
    bytes: Vec<u8>,
    /// Distance in bytes of the parameters of two dispatches.
    stride: usize,
    /// Full portions of a program.
    finished: Vec<Portion>,
    /// Number of dispatches that were recorded or run.
    pub(super) total: u64,
}

impl Recorder {
    pub(super) fn new(device: &Device) -> Result<Self> {
        let stride = device.limits.min_uniform_buffer_offset_alignment.max(256) as usize;
        let portion = Portion::new(device, stride)?;
        Ok(Self { portion, bytes: Vec::new(), stride, finished: Vec::new(), total: 0 })
    }

    fn is_full(&self) -> bool {
        self.portion.dispatches.len() == MAX_DISPATCHES
    }

    /// Writes the parameters of the portion; the write takes effect after the last submission, whose dispatches read the
    /// old ones, and before the next one.
    fn write_parameters(&mut self, device: &Device) {
        device.queue.write_buffer(&self.portion.uniforms, 0, &self.bytes);
        self.bytes.clear();
    }

    /// Begins a new portion of a program.
    fn next_portion(&mut self, device: &Device) -> Result<()> {
        self.write_parameters(device);
        let next = Portion::new(device, self.stride)?;
        self.finished.push(std::mem::replace(&mut self.portion, next));
        Ok(())
    }

    /// The portions of a program.
    ///
    /// # Errors
    /// [`crate::error::Kind::Device`].
    pub(super) fn finish(mut self, device: &Device) -> Result<Vec<Portion>> {
        self.write_parameters(device);
        self.finished.push(self.portion);
        device.check().map(|()| self.finished)
    }

    /// Adds a dispatch with parameters of type `P` at the offset of its bind group.
    fn push<P: Params>(
        &mut self,
        pipeline: wgpu::ComputePipeline,
        bindings: wgpu::BindGroup,
        params: &P,
        workgroups: (u32, u32),
    ) {
        self.total += 1;
        let offset = self.bytes.len();
        self.bytes.extend_from_slice(bytemuck::bytes_of(params));
        self.bytes.resize(offset + self.stride, 0);
        let offset = offset as u32;
        self.portion.dispatches.push(Dispatch { pipeline, bindings, offset, workgroups });
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
        let pipeline = self.shared.pipelines.get(operator, kernel, constants)?;
        let workgroups = self.spread(workgroups)?;
        match &mut self.recording {
            Some(recording) if recording.recorder.is_full() => {
                recording.recorder.next_portion(&self.device)?;
            }
            None if self.shared.recorder().is_full() => self.submit()?,
            _ => {}
        }
        let mut common;
        let recorder = match &mut self.recording {
            Some(recording) => &mut recording.recorder,
            None => {
                common = self.shared.recorder();
                &mut *common
            }
        };
        let uniform = wgpu::BindGroupEntry {
            binding: 0,
            resource: wgpu::BindingResource::Buffer(wgpu::BufferBinding {
                buffer: &recorder.portion.uniforms,
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
        recorder.push(pipeline.pipeline, bindings, &params, workgroups);
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
        if self.shared.recorder().portion.dispatches.is_empty() {
            return self.device.check();
        }
        let mut encoder = self.encoder();
        self.encode(&mut encoder);
        self.finish(encoder).map(drop)
    }

    pub(super) fn encoder(&self) -> wgpu::CommandEncoder {
        self.device.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default())
    }

    /// Moves the recorded dispatches into `encoder`.
    fn encode(&self, encoder: &mut wgpu::CommandEncoder) {
        let mut recorder = self.shared.recorder();
        if !recorder.portion.dispatches.is_empty() {
            recorder.write_parameters(&self.device);
            recorder.portion.encode(encoder);
            recorder.portion.dispatches.clear();
        }
    }

    pub(super) fn finish(&self, encoder: wgpu::CommandEncoder) -> Result<wgpu::SubmissionIndex> {
        let submission = self.device.queue.submit([encoder.finish()]);
        self.shared.pool.submitted();
        self.device.check().map(|()| submission)
    }

    /// A tensor of `shape` with arbitrary contents; `what` names it in errors.
    ///
    /// # Errors
    /// [`crate::error::Kind::Device`] when it is larger than the device takes or its memory is exhausted.
    pub(super) fn tensor(&mut self, shape: Shape, what: &str) -> Result<Tensor> {
        let block = self.scratch(bytes(shape), &format!("{what}: {shape:?}"))?;
        Ok(Tensor { shape, block: block.into() })
    }

    /// Scratch memory of at least `bytes`.
    ///
    /// # Errors
    /// As [`Gpu::tensor`].
    pub(super) fn scratch(&mut self, bytes: u64, what: &str) -> Result<Block> {
        check_size(&self.device, bytes, what)?;
        let pool = self.recording.as_ref().map_or(&self.shared.pool, |recording| &recording.pool);
        pool.block(&self.device, bytes, what).or_else(|_| {
            // Retry without idle memory, once the work that still reads it is done.
            self.shared.programs().clear(None);
            self.shared.pool.clear();
            self.device.wait(None)?;
            pool.block(&self.device, bytes, what)
        })
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
    pub(super) fn read_recorded(&mut self, x: &Tensor) -> Result<Download> {
        let mut encoder = self.encoder();
        self.encode(&mut encoder);
        let mut downloads = self.read(encoder, std::slice::from_ref(x))?;
        downloads.pop().ok_or_else(|| Error::internal("a copy has no download"))
    }

    /// Submits the work of `encoder` and begins to copy `tensors` to the host after it.
    ///
    /// # Errors
    /// [`crate::error::Kind::Device`].
    pub(super) fn read(
        &mut self,
        mut encoder: wgpu::CommandEncoder,
        tensors: &[Tensor],
    ) -> Result<Vec<Download>> {
        if let Some(table) = &mut *self.shared.table() {
            table.save();
        }
        let mut copies = Vec::with_capacity(tensors.len());
        for x in tensors {
            let size = bytes(x.shape);
            let buffer = self.shared.staging.take(&self.device, size)?;
            encoder.copy_buffer_to_buffer(&x.block.buffer, 0, &buffer, 0, size);
            copies.push(buffer);
        }
        let submission = self.finish(encoder)?;
        let begin = |buffer: wgpu::Buffer| {
            // A failure shows when the range below is requested.
            buffer.slice(..).map_async(wgpu::MapMode::Read, |_| ());
            let (device, staging) = (self.device.clone(), self.shared.staging.clone());
            let submission = submission.clone();
            Download::later(move || {
                device.wait(Some(submission))?;
                let size = buffer.size();
                let view = buffer.slice(..).get_mapped_range().map_err(|e| {
                    device.error(format!("a result of {size} bytes can't be read")).with_source(e)
                })?;
                let values = bytemuck::pod_collect_to_vec(&view[..]);
                drop(view);
                buffer.unmap();
                staging.give(buffer);
                Ok(values)
            })
        };
        Ok(copies.into_iter().map(begin).collect())
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
    const MOST: usize = 8;

    /// Largest buffer that is kept.
    const MAX_BYTES: u64 = 1 << 26;

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
