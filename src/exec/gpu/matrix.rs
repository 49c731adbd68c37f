//! Products of two matrices on the device: the second one is packed as the weights of a 1x1 convolution, whose kernels
//! compute the product.

use super::{
    Gpu, WORKGROUP,
    buffers::Block,
    conv::{self, ConvVariant},
    pipelines::{Operator, operator, params},
    queue::Call,
    to_u32,
};
use crate::{
    error::Result,
    ops::{Conv2d, Domain, Shape},
};

params! {
    /// Parameters of `shaders/conv2d_pack.wgsl`.
    struct PackParams {
        /// Invocations.
        count: u32,
        inputs: u32,
        outputs: u32,
        /// Inputs, padded.
        rows: u32,
        /// Outputs of a block.
        block: u32,
        /// Index of the matrix's first element.
        first: u32,
        input_stride: u32,
        output_stride: u32,
        /// Factor of all elements.
        scale: f32,
        pad0: u32,
        pad1: u32,
        pad2: u32,
    }
}

operator!(
    CONV2D_PACK, "conv2d_pack" from ["shared/invocation", "conv2d_pack"],
    PackParams, [Read, ReadWrite],
    "main": [1, 2]
);
operator!(
    CONV2D_PACK16, "conv2d_pack16" from ["shared/invocation", "conv2d_pack", "conv2d_pack16"],
    PackParams, [Read, ReadWrite],
    "main": [1, 2],
    "pairs": [1, 2]
);

/// The operators of this module.
pub(super) static OPERATORS: &[&Operator] = &[&CONV2D_PACK, &CONV2D_PACK16];

/// Position of a matrix of `inputs` rows and `outputs` columns in a buffer, in elements.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layout {
    pub(super) inputs: usize,
    pub(super) outputs: usize,
    /// Index of its first element.
    pub(super) first: usize,
    /// Distance of two inputs, and of two outputs.
    pub(super) strides: [usize; 2],
}

/// The second factor of a product, packed.
#[derive(Debug)]
pub(super) struct Matrix {
    p: Conv2d,
    variant: ConvVariant,
    packed: Block,
    bytes: u64,
    bias: wgpu::Buffer,
}

/// Rows of a dense matrix: a buffer, and the index of the first row in it.
pub(super) type Rows<'a> = (wgpu::BindingResource<'a>, usize);

impl Matrix {
    /// Packs `scale` times the matrix at `layout` of `x`; `what` names it in errors.
    ///
    /// # Errors
    /// [`crate::error::Kind::Device`].
    pub(super) fn new(
        gpu: &mut Gpu,
        what: &str,
        x: wgpu::BindingResource<'_>,
        layout: Layout,
        scale: f32,
    ) -> Result<Self> {
        let Layout { inputs, outputs, first, strides: [input_stride, output_stride] } = layout;
        let (in_channels, out_channels) = (inputs, outputs);
        let p = Conv2d {
            name: what.into(),
            in_channels,
            out_channels,
            kernel: 1,
            domain: Domain::Whole,
        };
        let variant = conv::for_product(gpu, &p);
        let [length, padded] = conv::packed_lengths(gpu, variant, &p);
        let halves = variant == ConvVariant::Cooperative;
        let (count, bytes) = if halves { (length / 2, 2 * length) } else { (length, 4 * length) };
        let packed = gpu.scratch(bytes as u64, what)?;
        let params = PackParams {
            count: to_u32(count),
            inputs: to_u32(inputs),
            outputs: to_u32(outputs),
            rows: to_u32(length / padded),
            block: to_u32(conv::block(gpu, variant, &p)),
            first: to_u32(first),
            input_stride: to_u32(input_stride),
            output_stride: to_u32(output_stride),
            scale,
            ..PackParams::default()
        };
        gpu.dispatch(Call {
            operator: if halves { &CONV2D_PACK16 } else { &CONV2D_PACK },
            kernel: usize::from(halves),
            constants: &[],
            params,
            buffers: &[x, packed.binding(bytes as u64)],
            workgroups: count.div_ceil(WORKGROUP) as u64,
        })?;
        // Rounded up, so that few buffers serve all sizes.
        let zeros = padded.next_power_of_two();
        let bias = gpu.parameter(&format!("{zeros} zeros"), |_| Ok(vec![0.0f32; zeros]))?;
        Ok(Self { p, variant, packed, bytes: bytes as u64, bias })
    }

    /// y [count, outputs] = `count` rows of x [count, inputs] times the matrix.
    ///
    /// # Errors
    /// [`crate::error::Kind::Device`].
    pub(super) fn product(
        &self,
        gpu: &mut Gpu,
        (x, first): Rows<'_>,
        count: usize,
        (y, first_result): Rows<'_>,
    ) -> Result<()> {
        let weight = self.packed.binding(self.bytes);
        let buffers = [x, weight, self.bias.as_entire_binding(), y];
        let shape = Shape::new(1, 1, count, self.p.out_channels);
        let place = conv::Place { first, first_result, ..conv::Place::default() };
        conv::run(gpu, self.variant, &self.p, shape, buffers, place, None)
    }
}
