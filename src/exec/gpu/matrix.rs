//! Products of matrices that are both on the device: the second is packed as a convolution's weights, and the convolutions'
//! kernels do the rest.

use super::{
    Gpu, WORKGROUP,
    buffers::Block,
    conv2d::{self, ConvVariant},
    pipelines::{operator, params},
    queue::Call,
    word,
};
use crate::{
    error::Result,
    ops::{Conv2d, Shape},
};

params! {
    struct PackParams {
        count: u32,
        inputs: u32,
        outputs: u32,
        rows: u32,
        block: u32,
        first: u32,
        input_stride: u32,
        output_stride: u32,
        scale: f32,
        pad0: u32,
        pad1: u32,
        pad2: u32,
    }
}

operator!(CONV2D_PACK, "conv2d_pack", PackParams, [Read, ReadWrite], "main": [1, 2]);
operator!(
    CONV2D_PACK16, "conv2d_pack16" from ["conv2d_pack", "conv2d_pack16"], PackParams, [Read, ReadWrite],
    "main": [1, 2],
    "pairs": [1, 2]
);

/// Where a matrix of `inputs` rows and `outputs` columns lies in a buffer, in elements.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layout {
    pub(super) inputs: usize,
    pub(super) outputs: usize,
    /// Its first element.
    pub(super) first: usize,
    /// From an input's to the next one's, from an output's to the next one's.
    pub(super) strides: [usize; 2],
}

/// The second factor of a product.
#[derive(Debug)]
pub(super) struct Matrix {
    p: Conv2d,
    variant: ConvVariant,
    packed: Block,
    bytes: u64,
    bias: wgpu::Buffer,
}

/// Rows of a matrix without gaps: a buffer, and the number of the first row in it.
pub(super) type Rows<'a> = (wgpu::BindingResource<'a>, usize);

impl Matrix {
    /// `scale` times what `layout` says of `x`; `what` names it in errors.
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
        let p = Conv2d { name: what.into(), in_channels, out_channels, kernel: 1, whole: true };
        let variant = conv2d::for_product(gpu, &p);
        let [length, padded] = conv2d::packed_lengths(gpu, variant, &p);
        let halves = variant == ConvVariant::Cooperative;
        let (count, bytes) = if halves { (length / 2, 2 * length) } else { (length, 4 * length) };
        let packed = gpu.scratch(bytes as u64, what)?;
        let params = PackParams {
            count: word(count),
            inputs: word(inputs),
            outputs: word(outputs),
            rows: word(length / padded),
            block: word(conv2d::block(gpu, variant, &p)),
            first: word(first),
            input_stride: word(input_stride),
            output_stride: word(output_stride),
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
        // Few of them, however many sizes there are.
        let zeros = padded.next_power_of_two();
        let bias = gpu.parameter(&format!("{zeros} zeros"), |_| Ok(vec![0.0f32; zeros]))?;
        Ok(Self { p, variant, packed, bytes: bytes as u64, bias })
    }

    /// y = `count` rows of `x` times the matrix.
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
        let place = conv2d::Place { first, first_result, ..conv2d::Place::default() };
        conv2d::run(gpu, self.variant, &self.p, shape, buffers, place, None)
    }
}
