//! Runs a fused graph: operators in order, each by its kernel, on tensors of the pool.

use std::sync::Arc;

use super::{
    Cpu, Layer, Tensor, attention,
    conv::Residual,
    input::{Input, Prologue},
    math,
    norm::{self, Channels},
    pool::Buffer,
    resample,
};
use crate::{
    error::{Error, Result},
    graph::{Fused, Load, Place, Source, Value},
    ops::{Conv2d, Op, Shape},
};

/// A graph that is being run.
pub(super) struct Run<'a> {
    cpu: &'a mut Cpu,
    fused: &'a Fused<'a>,
    /// Tensors in memory, by value.
    tensors: Vec<Option<Arc<Buffer>>>,
    /// Norms that are applied as values are loaded, by value.
    prologues: Vec<Option<Prologue>>,
}

impl<'a> Run<'a> {
    pub(super) fn new(cpu: &'a mut Cpu, fused: &'a Fused<'a>, inputs: Vec<Tensor>) -> Self {
        let graph = fused.graph();
        let count = graph.nodes().len();
        let mut run = Self { cpu, fused, tensors: vec![None; count], prologues: vec![None; count] };
        for (value, input) in graph.inputs().iter().zip(inputs) {
            run.tensors[value.index()] = Some(input.data);
        }
        run
    }

    /// Runs all operators; returns the results.
    pub(super) fn finish(mut self) -> Result<Vec<Tensor>> {
        let (fused, graph) = (self.fused, self.fused.graph());
        for (value, node) in graph.values().zip(graph.nodes()) {
            if let Source::Operator { op, inputs } = &node.source {
                match fused.place(value) {
                    Place::Sum => {}
                    Place::Load => self.prepare(value, op, inputs)?,
                    Place::Memory => {
                        let tensor = self.compute(value, op, inputs)?;
                        self.tensors[value.index()] = Some(tensor);
                    }
                }
            }
            for &freed in fused.freed_after(value) {
                (self.tensors[freed.index()], self.prologues[freed.index()]) = (None, None);
            }
        }
        let results = graph.outputs().iter();
        results
            .map(|&output| {
                Ok(Tensor { shape: graph.shape(output), data: self.tensor(output)?.clone() })
            })
            .collect()
    }

    fn shape(&self, value: Value) -> Shape {
        self.fused.graph().shape(value)
    }

    /// The tensor `value` in memory.
    fn tensor(&self, value: Value) -> Result<&Arc<Buffer>> {
        let missing = || Error::internal("a value of a graph is read before it is computed");
        self.tensors[value.index()].as_ref().ok_or_else(missing)
    }

    /// The input of a kernel that reads `load`.
    fn input(&self, load: Load) -> Result<Input<'_>> {
        let missing = || Error::internal("a norm of a graph is read before it is computed");
        let prologue = match load.norm {
            Some(norm) => self.prologues[norm.index()].as_ref().ok_or_else(missing)?,
            None => &Prologue::Plain,
        };
        Ok(Input {
            shape: self.shape(load.source),
            data: self.tensor(load.source)?,
            prologue,
            silu: load.silu,
            up: load.up,
        })
    }

    /// Computes what is needed to apply `op`, the operator of `value`, as the value is loaded.
    fn prepare(&mut self, value: Value, op: &Op, inputs: &[Value]) -> Result<()> {
        let (arch, shape) = (self.cpu.config.arch, self.shape(value));
        let prologue = match (op, inputs) {
            (Op::GroupNorm(p), &[x]) => {
                let params = p.load(&self.cpu.weights)?;
                let affine = norm::group_norm(arch, self.tensor(x)?, shape, p.groups, params);
                Prologue::Affine(affine)
            }
            (Op::PixelNorm(p), _) => {
                let weight = p.load(&self.cpu.weights)?;
                Prologue::Pixel(Channels::new(shape.c, |c| weight[c]))
            }
            (Op::ScaleShift(_), &[x, pair]) => {
                let next = norm::scale_shift(self.tensor(pair)?, shape.c);
                let inner = self.fused.read(x).norm.map(|norm| &self.prologues[norm.index()]);
                Prologue::Affine(match inner {
                    Some(Some(Prologue::Affine(maps))) => (0..maps.len().max(next.len()))
                        .map(|n| maps[n % maps.len()].then(&next[n % next.len()], shape.c))
                        .collect(),
                    _ => next,
                })
            }
            _ => return Ok(()),
        };
        self.prologues[value.index()] = Some(prologue);
        Ok(())
    }

    /// The result of `op`, the operator of `value`, in memory.
    fn compute(&mut self, value: Value, op: &Op, inputs: &[Value]) -> Result<Arc<Buffer>> {
        let (arch, shape) = (self.cpu.config.arch, self.shape(value));
        match (op, inputs) {
            (Op::Conv2d(p), &[x]) => return self.product(p, x, shape, None),
            (Op::WeightedAdd(factors), &[a, b]) => {
                let (wa, wb) = factors.resolve(&self.cpu.weights)?;
                let Some((term, first)) = self.fused.term(a, b) else {
                    let (a, b) = (self.tensor(a)?, self.tensor(b)?);
                    return Ok(self.cpu.fill(shape, |out| {
                        math::zip(
                            arch,
                            out,
                            a,
                            b,
                            #[inline(always)]
                            |a, b| wa * a + wb * b,
                        )
                    }));
                };
                // Addition commutes to the bit.
                let (other, wa, wb) = if first { (b, wb, wa) } else { (a, wa, wb) };
                let Load { source, up, .. } = self.fused.read(other);
                let data = self.tensor(source)?.clone();
                let residual = Residual { data: &data, up, wa, wb };
                let Source::Operator { op: Op::Conv2d(p), inputs } =
                    &self.fused.graph().node(term).source
                else {
                    return Err(Error::internal("a term of a sum is no convolution"));
                };
                return self.product(p, inputs[0], shape, Some(&residual));
            }
            (
                Op::GroupNorm(_)
                | Op::PixelNorm(_)
                | Op::Silu
                | Op::ScaleShift(_)
                | Op::UpsampleNearest2,
                _,
            ) => {
                self.prepare(value, op, inputs)?;
                return self.write(self.fused.load(value));
            }
            _ => {}
        }
        let read: Vec<&[f32]> =
            (inputs.iter()).map(|&input| Ok(&self.tensor(input)?[..])).collect::<Result<_>>()?;
        let cpu = &*self.cpu;
        let x = inputs.first().map_or(shape, |&x| self.shape(x));
        let gain = match op {
            Op::AddNoise(p) => p.load(&cpu.weights)?,
            _ => &[],
        };
        let mut known = true;
        let result = cpu.fill(shape, |out| match (op, &read[..]) {
            (Op::Concat, &[a, b]) => {
                let channels = inputs.iter().map(|&input| self.shape(input).c);
                let [ca, cb] = [0, 1].map(|i| channels.clone().nth(i).unwrap_or(0));
                resample::concat(arch, out, (a, ca), (b, cb));
            }
            (Op::AvgPool2, &[data]) => resample::avg_pool2(arch, out, data, x),
            (Op::GlobalAvgPool, &[data]) => norm::global_avg_pool(arch, out, data, x),
            (Op::FirDown2, &[data]) => resample::fir_down2(arch, out, data, x),
            (Op::FirUp2, &[data]) => resample::fir_up2(arch, out, data, x),
            (Op::PixelUnshuffle(r), &[data]) => resample::pixel_unshuffle(arch, out, data, x, *r),
            (Op::PixelShuffle(r), &[data]) => resample::pixel_shuffle(arch, out, data, x, *r),
            (Op::SpatialAttention, &[q, k, v]) => {
                attention::spatial(cpu.config, out, [q, k, v], shape, &cpu.pool);
            }
            (Op::ChannelAttention, &[q, k, v]) => {
                attention::channel(cpu.config, out, [q, k, v], shape, &cpu.pool);
            }
            (Op::AddNoise(_), &[data, noise]) => {
                resample::add_noise(arch, out, data, noise, gain);
            }
            (Op::Crop(window), &[data]) => resample::crop(arch, out, data, x, *window),
            _ => known = false,
        });
        match known {
            true => Ok(result),
            false => Err(Error::internal(format!("the CPU has no operator {}", op.name()))),
        }
    }

    /// The convolution `p` of `x` with a result of `shape`, or its weighted sum with `residual`.
    fn product(
        &mut self,
        p: &Conv2d,
        x: Value,
        shape: Shape,
        residual: Option<&Residual>,
    ) -> Result<Arc<Buffer>> {
        let layer = self.cpu.layer(p, shape)?;
        let input = self.input(self.fused.read(x))?;
        let cpu = &*self.cpu;
        Ok(cpu.fill(shape, |out| match &layer {
            Layer::Direct(packed) => packed.run(&input, residual, out),
            Layer::Winograd(winograd) => winograd.run(&input, residual, out, &cpu.pool),
        }))
    }

    /// The result of `load`, written to memory.
    fn write(&self, load: Load) -> Result<Arc<Buffer>> {
        let (input, arch) = (self.input(load)?, self.cpu.config.arch);
        let source = match load.is_plain() {
            true => self.tensor(load.source)?.clone(),
            false => self.cpu.fill(input.shape, |out| input.write(arch, out)),
        };
        Ok(match load.up {
            true => self.cpu.fill(input.grid(), |out| {
                resample::upsample_nearest2(arch, out, &source, input.shape);
            }),
            false => source,
        })
    }
}
