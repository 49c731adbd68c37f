//! Peak arithmetic throughput of a GPU: multiply-adds on registers.

use std::error::Error;

use wgpu::util::DeviceExt as _;

/// Invocations, and rounds of 8 multiply-adds of four lanes each.
const INVOCATIONS: u32 = 1 << 13;
const ROUNDS: u32 = 1 << 10;

/// Floating-point operations of one [`Ceiling::run`].
pub(crate) const FLOPS: u64 = 2 * 4 * 8 * INVOCATIONS as u64 * ROUNDS as u64;

// The sums depend on the invocation, so that they can't be shared, and are stored, so that they can't be eliminated.
const SHADER: &str = "
@group(0) @binding(0) var<storage, read_write> out: array<vec4<f32>>;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let a = vec4<f32>(0.999 + f32(id.x) * 1e-9);
    let b = vec4<f32>(f32(id.x) * 1e-6);
    var s0 = b; var s1 = b + 1.0; var s2 = b + 2.0; var s3 = b + 3.0;
    var s4 = b + 4.0; var s5 = b + 5.0; var s6 = b + 6.0; var s7 = b + 7.0;
    for (var i = 0u; i < ROUNDS; i++) {
        s0 = fma(s0, a, b); s1 = fma(s1, a, b); s2 = fma(s2, a, b); s3 = fma(s3, a, b);
        s4 = fma(s4, a, b); s5 = fma(s5, a, b); s6 = fma(s6, a, b); s7 = fma(s7, a, b);
    }
    out[id.x] = s0 + s1 + s2 + s3 + s4 + s5 + s6 + s7;
}";

/// The measurement, ready to run.
pub(crate) struct Ceiling {
    device: wgpu::Device,
    queue: wgpu::Queue,
    pipeline: wgpu::ComputePipeline,
    group: wgpu::BindGroup,
}

impl Ceiling {
    /// On the first device that there is.
    pub(crate) fn new() -> Result<Self, Box<dyn Error>> {
        let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle();
        descriptor.backends = wgpu::Backends::PRIMARY;
        let instance = wgpu::Instance::new(descriptor);
        let adapters = pollster::block_on(instance.enumerate_adapters(wgpu::Backends::PRIMARY));
        let adapter = adapters.into_iter().next().ok_or("there is no GPU")?;
        let (device, queue) =
            pollster::block_on(adapter.request_device(&wgpu::DeviceDescriptor::default()))?;
        let source =
            wgpu::ShaderSource::Wgsl(SHADER.replace("ROUNDS", &format!("{ROUNDS}u")).into());
        let module =
            device.create_shader_module(wgpu::ShaderModuleDescriptor { label: None, source });
        let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: None,
            layout: None,
            module: &module,
            entry_point: Some("main"),
            compilation_options: wgpu::PipelineCompilationOptions::default(),
            cache: None,
        });
        let out = device.create_buffer_init(&wgpu::util::BufferInitDescriptor {
            label: None,
            contents: &vec![0; 16 * INVOCATIONS as usize],
            usage: wgpu::BufferUsages::STORAGE,
        });
        let group = device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: None,
            layout: &pipeline.get_bind_group_layout(0),
            entries: &[wgpu::BindGroupEntry { binding: 0, resource: out.as_entire_binding() }],
        });
        Ok(Self { device, queue, pipeline, group })
    }

    /// Computes, and waits for the end.
    pub(crate) fn run(&self) -> Result<(), wgpu::PollError> {
        let mut encoder = self.device.create_command_encoder(&Default::default());
        {
            let mut pass = encoder.begin_compute_pass(&Default::default());
            pass.set_pipeline(&self.pipeline);
            pass.set_bind_group(0, &self.group, &[]);
            pass.dispatch_workgroups(INVOCATIONS / 64, 1, 1);
        }
        self.queue.submit([encoder.finish()]);
        self.device.poll(wgpu::PollType::wait_indefinitely()).map(drop)
    }
}
