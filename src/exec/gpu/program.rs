//! Graphs that are prepared once and run again: their dispatches with bind groups, buffers and parameters.

use std::{
    mem,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use super::{
    Gpu, Tensor,
    buffers::{Pool, bytes},
    queue::{Portion, Recorder},
    run,
};
use crate::{
    error::{Error, Result},
    graph::{Download, Fused, Graph, Input},
    ops::{Rect, Shape},
};

/// Most bytes of the programs of a device, unless one alone is larger.
const MAX_BYTES: u64 = 256 << 20;

/// Identifies a backend among those that share a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Owner(u64);

impl Owner {
    /// A new one.
    pub(super) fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self(NEXT.fetch_add(1, Relaxed))
    }
}

/// A prepared graph. Its buffers are its own, so that nothing is allocated when it runs.
#[derive(Debug)]
pub(super) struct Program {
    owner: Owner,
    graph: Graph,
    inputs: Vec<Tensor>,
    portions: Vec<Portion>,
    outputs: Vec<Tensor>,
    /// Bytes of its buffers.
    bytes: u64,
}

/// The programs of a device, the one that was used last at the end.
#[derive(Debug, Default)]
pub(super) struct Programs(Vec<Program>);

impl Programs {
    /// Removes and returns the program of `graph`.
    fn take(&mut self, owner: Owner, graph: &Graph) -> Option<Program> {
        let is_it = |program: &Program| program.owner == owner && program.graph == *graph;
        let at = self.0.iter().position(is_it)?;
        Some(self.0.remove(at))
    }

    /// Adds `program` and removes the oldest others that exceed the bound with it.
    fn give(&mut self, program: Program) {
        self.shrink(MAX_BYTES.saturating_sub(program.bytes));
        self.0.push(program);
    }

    /// Removes the oldest programs until the others have at most `most` bytes.
    fn shrink(&mut self, most: u64) {
        let mut total: u64 = self.0.iter().map(|program| program.bytes).sum();
        self.0.retain(|program| {
            let keep = total <= most;
            total -= if keep { 0 } else { program.bytes };
            keep
        });
    }

    /// Removes all programs, or those of one owner.
    pub(super) fn clear(&mut self, owner: Option<Owner>) {
        self.0.retain(|program| owner.is_some_and(|owner| owner != program.owner));
    }
}

/// A program that is being recorded.
#[derive(Debug)]
pub(super) struct Recording {
    pub(super) recorder: Recorder,
    pub(super) pool: Pool,
}

impl Gpu {
    /// Frees programs so that a graph that runs once finds the memory that its plan counts with.
    pub(super) fn shrink_programs(&self) {
        self.shared.programs().shrink(MAX_BYTES);
    }

    /// Records the dispatches of `graph` without submitting them.
    ///
    /// # Errors
    /// Those of [`crate::graph::Backend::run`].
    fn compile(&mut self, graph: &Graph) -> Result<Program> {
        self.shrink_programs();
        let recorder = Recorder::new(&self.device)?;
        self.recording = Some(Recording { recorder, pool: Pool::default() });
        let recorded = self.record(graph);
        let recording = self.recording.take();
        let (inputs, outputs) = recorded?;
        let Some(Recording { recorder, pool }) = recording else {
            return Err(Error::internal("a recording has ended before its graph"));
        };
        let portions = recorder.finish(&self.device)?;
        let bytes = pool.created() + portions.iter().map(Portion::bytes).sum::<u64>();
        Ok(Program { owner: self.owner, graph: graph.clone(), inputs, portions, outputs, bytes })
    }

    /// Records `graph`; returns its inputs and results.
    fn record(&mut self, graph: &Graph) -> Result<(Vec<Tensor>, Vec<Tensor>)> {
        let shapes = graph.inputs().iter().map(|&input| graph.shape(input));
        let inputs: Vec<_> =
            shapes.map(|shape| self.tensor(shape, "input")).collect::<Result<_>>()?;
        let outputs = run::run(self, &Fused::new(graph, self.fusion), inputs.clone())?;
        Ok((inputs, outputs))
    }

    /// Runs the program of `graph`, prepared now if there is none.
    ///
    /// # Errors
    /// Those of [`crate::graph::Backend::evaluate`].
    pub(super) fn run_program(
        &mut self,
        graph: &Graph,
        inputs: &[Input<'_, Tensor>],
    ) -> Result<Vec<Download>> {
        let known = self.shared.programs().take(self.owner, graph);
        let program = known.map_or_else(|| self.compile(graph), Ok)?;
        let downloads = self.submit_program(&program, inputs);
        self.shared.programs().give(program);
        downloads
    }

    fn submit_program(
        &mut self,
        program: &Program,
        inputs: &[Input<'_, Tensor>],
    ) -> Result<Vec<Download>> {
        // Recorded work comes first; writes from the host take effect before the next submission.
        self.submit()?;
        let mut encoder = self.encoder();
        for (input, own) in inputs.iter().zip(&program.inputs) {
            match *input {
                Input::Host(_, data) => {
                    let data = bytemuck::cast_slice(data);
                    self.device.queue.write_buffer(&own.block.buffer, 0, data);
                }
                Input::Window(x, window) => copy_window(&mut encoder, x, window, own),
            }
        }
        for portion in &program.portions {
            portion.encode(&mut encoder);
            let encoded = mem::replace(&mut encoder, self.encoder());
            self.finish(encoded)?;
        }
        self.shared.recorder().total += program.portions.iter().map(Portion::len).sum::<u64>();
        let downloads = self.read(encoder, &program.outputs)?;
        Ok(downloads)
    }
}

/// Copies a window of `x` to `to`, row by row.
fn copy_window(encoder: &mut wgpu::CommandEncoder, x: &Tensor, window: Rect, to: &Tensor) {
    let Shape { n, h, w, c } = x.shape();
    let row = bytes(Shape::new(1, 1, window.width, c));
    for picture in 0..n {
        for y in 0..window.height {
            let from = bytes(Shape::new(1, 1, (picture * h + window.y + y) * w + window.x, c));
            let at = (picture * window.height + y) as u64 * row;
            encoder.copy_buffer_to_buffer(&x.block.buffer, from, &to.block.buffer, at, row);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{path::Path, sync::Arc};

    use super::*;
    use crate::{
        exec::gpu::tests::gpu,
        graph::{
            Backend, GraphBuilder,
            testing::{random_inputs, results},
        },
        model::{checkpoint::Checkpoint, decoder, sampler::latent_shapes, unet},
        ops::{crop, testing::Random},
    };

    fn model(name: &str) -> Checkpoint {
        // Relative to the package's root, where cargo runs tests.
        Checkpoint::open(&Path::new("tests/fixtures").join(name)).unwrap()
    }

    /// The results of `graph` by [`Backend::run`].
    fn once(gpu: &mut Gpu, graph: &Graph, inputs: &[(Shape, Vec<f32>)]) -> Vec<Vec<f32>> {
        results(gpu, graph, inputs).unwrap()
    }

    /// The results of `graph` by [`Backend::evaluate`].
    fn prepared(gpu: &mut Gpu, graph: &Graph, inputs: &[(Shape, Vec<f32>)]) -> Vec<Vec<f32>> {
        let inputs: Vec<_> = inputs.iter().map(|(shape, data)| Input::Host(*shape, data)).collect();
        let downloads = gpu.evaluate(graph, &inputs).unwrap();
        downloads.into_iter().map(|download| download.wait().unwrap()).collect()
    }

    /// Evaluations of the networks, in turns and with new inputs each time, have the bits of single runs. From the second
    /// one on they make no object of the device.
    #[test]
    fn programs_equal_single_runs_and_allocate_nothing() {
        let model = model("net-g.safetensors");
        let Some(mut gpu) = gpu(model.weights.clone()) else { return };
        let (arch, side) = (&model.arch, model.arch.coarsest_factor());
        let latents = |n: usize| latent_shapes(arch, n, 2 * side, side);
        let graphs = [
            unet::graph(arch, 0, &latents(1)).unwrap(),
            unet::graph(arch, 0, &latents(2)).unwrap(),
            unet::graph(arch, 1, &latents(1)).unwrap(),
            decoder::tile_graph(arch, 6, 7, Rect { x: 3, y: 5, width: 20, height: 17 }).unwrap(),
        ];
        let mut random = Random::new(17);
        let mut allocations = Vec::new();
        for _ in 0..3 {
            let mut made = 0;
            for graph in &graphs {
                let inputs = random_inputs(graph, &mut random);
                let before = gpu.allocations();
                let found = prepared(&mut gpu, graph, &inputs);
                made += gpu.allocations() - before;
                assert!(found == once(&mut gpu, graph, &inputs));
            }
            allocations.push(made);
        }
        assert!(allocations[0] > 0 && allocations[1..] == [0, 0], "{allocations:?}");
    }

    /// A window of a tensor on the device as input is the same as its values.
    #[test]
    fn windows_are_inputs() {
        let Some(mut gpu) = gpu(Arc::default()) else { return };
        let (whole, mut random) = (Shape::new(2, 7, 9, 5), Random::new(18));
        let values = random.values(whole.len(), 0.0, 1.0);
        let x = gpu.upload(whole, &values).unwrap();
        for window in [(0, 0, 9, 7), (2, 1, 3, 4), (8, 6, 1, 1), (4, 0, 5, 2)] {
            let (x0, y, width, height) = window;
            let window = Rect { x: x0, y, width, height };
            let mut g = GraphBuilder::new();
            let input = g.input(Shape { h: height, w: width, ..whole }).unwrap();
            let sum = g.add(input, input).unwrap();
            let graph = g.finish([sum]);
            let found = gpu.evaluate(&graph, &[Input::Window(&x, window)]).unwrap();
            let found = found.into_iter().next().unwrap().wait().unwrap();
            let cut = crop::reference(&values, whole, window);
            assert!(found.iter().zip(&cut).all(|(found, cut)| *found == 2.0 * cut), "{window:?}");
        }
        let outside = Rect { x: 8, y: 0, width: 2, height: 1 };
        let mut g = GraphBuilder::new();
        let input = g.input(Shape { h: 1, w: 2, ..whole }).unwrap();
        assert!(gpu.evaluate(&g.finish([input]), &[Input::Window(&x, outside)]).is_err());
    }

    /// The oldest programs make room for new ones, and those of a model go with its backend; its neighbour on the same
    /// device keeps its own.
    #[test]
    fn programs_are_bounded() {
        let program = |owner, bytes| Program {
            owner,
            graph: GraphBuilder::new().finish([]),
            inputs: Vec::new(),
            portions: Vec::new(),
            outputs: Vec::new(),
            bytes,
        };
        let [a, b] = [Owner::new(), Owner::new()];
        let mut programs = Programs::default();
        for (owner, share) in [(a, 2), (b, 4), (a, 4), (b, 4)] {
            programs.give(program(owner, MAX_BYTES / share));
        }
        let kept = |programs: &Programs| -> Vec<_> {
            programs.0.iter().map(|program| (program.owner, MAX_BYTES / program.bytes)).collect()
        };
        assert_eq!(kept(&programs), [(b, 4), (a, 4), (b, 4)]);
        programs.clear(Some(b));
        assert_eq!(kept(&programs), [(a, 4)]);
        programs.give(program(a, 2 * MAX_BYTES));
        assert_eq!(programs.0.len(), 1);
        programs.shrink(MAX_BYTES);
        assert!(programs.0.is_empty());
    }

    /// Two models on one device: each has its own weights, whichever runs in between.
    #[test]
    fn models_share_a_device() {
        let [one, two] = ["net-g.safetensors", "net-a.safetensors"].map(model);
        let Some(mut first) = gpu(one.weights.clone()) else { return };
        let mut second = first.with_weights(two.weights.clone());
        let mut alone = gpu(two.weights.clone()).unwrap();
        let graph_of = |model: &Checkpoint| {
            let side = model.arch.coarsest_factor();
            unet::graph(&model.arch, 0, &latent_shapes(&model.arch, 1, side, side)).unwrap()
        };
        let (graph_one, graph_two) = (graph_of(&one), graph_of(&two));
        let mut random = Random::new(19);
        for _ in 0..2 {
            let inputs = random_inputs(&graph_two, &mut random);
            let others = random_inputs(&graph_one, &mut random);
            let before = prepared(&mut first, &graph_one, &others);
            let found = prepared(&mut second, &graph_two, &inputs);
            assert!(found == once(&mut alone, &graph_two, &inputs));
            assert!(once(&mut first, &graph_one, &others) == before);
        }
    }
}
