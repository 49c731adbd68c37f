//! `tessera inspect`: contents and costs of a checkpoint.

use std::{collections::BTreeMap, fmt::Write as _, path::PathBuf};

use serde::Serialize;
use sha2::{Digest as _, Sha256};

use super::{
    args::{self, Size},
    progress::{Progress, ProgressArgs},
    text,
};
use crate::{
    engine::plan::{self, Plan, Spec, TileSize},
    error::{Error, Result},
    exec::memory::MEMORY,
    graph::{Graph, Source},
    model::{
        arch::{Arch, GroupShape, Label},
        checkpoint::Checkpoint,
        cost, decoder, encoder, unet,
    },
    ops::Shape,
    store::hash::hex,
};

/// Show a checkpoint: levels, parameters, cost, hashes
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Checkpoint; the embedded one if not given
    #[arg(value_name = "MODEL", env = "TESSERA_MODEL")]
    model: Option<PathBuf>,
    /// Size in pixels for the costs; the trained size if not given
    #[arg(long, value_name = "WxH")]
    size: Option<Size>,
    /// Side of a tile in pixels for the costs, or "whole"
    #[arg(long, value_name = "N", value_parser = args::parse_tile, default_value = "512")]
    tile: TileSize,
    /// Print the operators of a network, one a line, with shapes and costs: encoder, a denoiser by the name of its group of
    /// levels ("unet" in models with one), global (the decoder's global stage) or tile (its local stage for the largest
    /// tile)
    #[arg(long, value_name = "NETWORK")]
    graph: Option<String>,
    /// Print the graph in the DOT language of Graphviz
    #[arg(long, requires = "graph")]
    dot: bool,
    #[command(flatten)]
    pub(super) progress: ProgressArgs,
}

/// The graph `name` for the picture of `plan`.
fn network_graph(name: &str, arch: &Arch, plan: &Plan) -> Result<Graph> {
    let Spec { width, height, .. } = plan.spec;
    match name {
        "encoder" => encoder::graph(arch, Shape::new(1, height, width, 3)),
        "global" => decoder::global_graph(arch, &plan.latents),
        "tile" => {
            let (rows, columns) = plan.tiling.largest_window();
            decoder::local_graph(arch, 1, rows, columns)
        }
        _ => {
            let group = arch.groups.iter().position(|group| group.name == name);
            let group = group.ok_or_else(|| {
                let groups: Vec<_> = arch.groups.iter().map(|group| group.name.as_str()).collect();
                let expected = format!("encoder, global, tile or {}", groups.join(" or "));
                Error::invalid("graph", name, expected)
            })?;
            unet::graph(arch, group, &plan.latents)
        }
    }
}

/// A node of a graph.
#[derive(Serialize)]
#[serde(tag = "event", rename = "node")]
struct NodeLine<'a> {
    node: usize,
    operator: &'a str,
    layer: Option<&'a str>,
    inputs: Vec<usize>,
    shape: [usize; 4],
    flops: u64,
    result: bool,
}

#[derive(Serialize)]
#[serde(tag = "event", rename = "model")]
struct Report {
    name: String,
    sha256: String,
    trained_width: usize,
    trained_height: usize,
    width: usize,
    height: usize,
    levels: Vec<Level>,
    labels: Vec<Label>,
    groups: Vec<Step>,
    networks: BTreeMap<String, Network>,
    parameters: u64,
    step_flops: u64,
    step_peak_bytes: u64,
    decode_flops: u64,
    decode_peak_bytes: u64,
    tiles: usize,
    tile_flops: u64,
    tile_peak_bytes: u64,
    halo: usize,
    halo_pixels: usize,
}

#[derive(Serialize)]
struct Level {
    factor: usize,
    rows: usize,
    columns: usize,
    channels: usize,
    sigma_shift: f64,
}

#[derive(Default, Serialize)]
struct Network {
    parameters: u64,
    sha256: String,
}

/// A step of a group of levels.
#[derive(Serialize)]
struct Step {
    name: String,
    step_flops: u64,
    step_peak_bytes: u64,
    /// `[low, high]`: labels guide at low < sigma <= high.
    #[serde(skip_serializing_if = "Option::is_none")]
    guidance: Option<[f64; 2]>,
}

pub(super) fn run(args: &Args, progress: &mut Progress) -> Result<()> {
    let model = args::open_model(args.model.as_ref())?;
    let mut spec = Spec::new(&model.arch, 0);
    if let Some(Size { width, height }) = args.size {
        (spec.width, spec.height) = (width, height);
    }
    spec.tile = args.tile;
    let plan = Plan::new(spec, &model.arch)?;
    if let Some(name) = &args.graph {
        let graph = network_graph(name, &model.arch, &plan)?;
        print_nodes(&graph, progress);
        return progress.result(&match args.dot {
            true => graph.dot().to_string(),
            false => graph.table().to_string(),
        });
    }
    let report = report(&model, plan)?;
    progress.json(&report);
    progress.result(&table(&report))
}

/// Prints the nodes of `graph` as JSON.
fn print_nodes(graph: &Graph, progress: &mut Progress) {
    for (value, node) in graph.values().zip(graph.nodes()) {
        let (operator, layer, inputs) = match &node.source {
            Source::Input => ("input", None, &[][..]),
            Source::Operator { op, inputs } => (op.name(), op.layer(), &inputs[..]),
        };
        let Shape { n, h, w, c } = node.shape;
        progress.json(&NodeLine {
            node: value.index(),
            operator,
            layer,
            inputs: inputs.iter().map(|input| input.index()).collect(),
            shape: [n, h, w, c],
            flops: graph.flops(value),
            result: graph.outputs().contains(&value),
        });
    }
}

fn report(model: &Checkpoint, plan: Plan) -> Result<Report> {
    let arch = &model.arch;
    let Plan { spec, tiling, latents, .. } = plan;
    let step = |shape: GroupShape<'_>| {
        let (index, name) = (shape.index(), shape.group.name.clone());
        let cost = cost::unet_cost(arch, index, 1, &MEMORY, spec.width, spec.height)?;
        Ok(Step {
            name,
            step_flops: cost.flops,
            step_peak_bytes: cost.peak_bytes,
            guidance: shape.group.guidance,
        })
    };
    let groups = arch.group_shapes().map(step).collect::<Result<Vec<_>>>()?;
    let decode = plan::decode_cost(arch, &tiling)?;
    let (rows, columns) = tiling.largest_window();
    let tile = cost::local_cost(arch, &MEMORY, rows, columns)?;
    let shifts: Vec<f64> =
        arch.groups.iter().rev().flat_map(|group| group.noise.shift.iter().copied()).collect();
    let levels = arch.levels.iter().zip(&latents).zip(shifts);
    let groups_of = arch.group_shapes().map(|shape| (shape.group.name.clone(), shape.prefix()));
    let networks = ["encoder", "decoder"].map(|name| (name.to_owned(), format!("{name}.")));
    let networks = networks.into_iter().chain(groups_of);
    let networks = networks.map(|(name, prefix)| (name, network(model, &prefix)));
    Ok(Report {
        name: arch.name.clone(),
        sha256: model.sha256.clone(),
        trained_width: arch.width(),
        trained_height: arch.height(),
        width: spec.width,
        height: spec.height,
        levels: levels
            .map(|((level, shape), sigma_shift)| Level {
                factor: level.factor,
                rows: shape.h,
                columns: shape.w,
                channels: level.channels,
                sigma_shift,
            })
            .collect(),
        parameters: model.weights.iter().map(|(_, p)| p.data.len() as u64).sum(),
        labels: arch.labels.clone(),
        networks: networks.collect(),
        step_flops: groups[0].step_flops,
        step_peak_bytes: groups[0].step_peak_bytes,
        groups,
        decode_flops: decode.flops,
        decode_peak_bytes: decode.peak_bytes,
        tiles: tiling.tiles.len(),
        tile_flops: tile.flops,
        tile_peak_bytes: tile.peak_bytes,
        halo: tiling.halo,
        halo_pixels: tiling.halo * arch.finest_factor(),
    })
}

/// Number of parameters whose names begin with `prefix`, and SHA-256 of their names and values (f32, little endian), by name.
fn network(model: &Checkpoint, prefix: &str) -> Network {
    let mut params: Vec<_> =
        model.weights.iter().filter(|(name, _)| name.starts_with(prefix)).collect();
    params.sort_by_key(|(name, _)| *name);
    let mut hash = Sha256::new();
    for (name, param) in &params {
        hash.update(name.as_bytes());
        for chunk in param.data.chunks(1024) {
            hash.update(chunk.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>());
        }
    }
    let sha256 = hex(&hash.finalize());
    Network { parameters: params.iter().map(|(_, p)| p.data.len() as u64).sum(), sha256 }
}

fn table(report: &Report) -> String {
    let mut out = String::new();
    // Writing to a String does not fail.
    let _ = write_table(&mut out, report);
    out
}

fn write_table(out: &mut String, r: &Report) -> std::fmt::Result {
    writeln!(out, "{}, trained for {} x {}", r.name, r.trained_width, r.trained_height)?;
    writeln!(out, "sha256 {}\n", r.sha256)?;
    writeln!(out, "  level  factor        grid  channels  sigma shift")?;
    for (l, level) in r.levels.iter().enumerate() {
        let factor = if level.factor == 0 { "-".into() } else { level.factor.to_string() };
        let grid = format!("{} x {}", level.columns, level.rows);
        let Level { channels, sigma_shift, .. } = level;
        writeln!(out, "  {l:>5}  {factor:>6}  {grid:>10}  {channels:>8}  {sigma_shift:>11.2}")?;
    }
    writeln!(out, "  sigma shift: ln(sigma of the level) - ln(sigma of the step)")?;
    writeln!(out, "\n  network  parameters  sha256")?;
    let groups = r.groups.iter().map(|group| group.name.as_str());
    for name in ["encoder", "decoder"].into_iter().chain(groups) {
        let Some(network) = r.networks.get(name) else { continue };
        let count = text::scaled(network.parameters as f64);
        writeln!(out, "  {name:<7}  {count:>10}  {:.16}", network.sha256)?;
    }
    writeln!(out, "  all      {:>10}", text::scaled(r.parameters as f64))?;
    if !r.labels.is_empty() {
        writeln!(out, "\n  label    values")?;
        for Label { name, values } in &r.labels {
            writeln!(out, "  {name:<7}  {}", values.join(", "))?;
        }
        if let Some([low, high]) = r.groups[0].guidance {
            writeln!(out, "  guidance in steps with sigma above {low} and up to {high}")?;
        }
    }
    writeln!(out, "\n  at {} x {}           work      memory", r.width, r.height)?;
    let mut row = |name: String, flops, bytes| {
        writeln!(out, "  {name:<18}{:>13}  {:>10}", text::flops(flops), text::bytes(bytes))
    };
    for Step { name, step_flops, step_peak_bytes, .. } in &r.groups {
        let name = match r.groups.len() {
            1 => "denoising step".into(),
            _ => format!("{name} step"),
        };
        row(name, *step_flops, *step_peak_bytes)?;
    }
    row(format!("decode, {} tiles", r.tiles), r.decode_flops, r.decode_peak_bytes)?;
    row("largest tile".into(), r.tile_flops, r.tile_peak_bytes)?;
    writeln!(out, "\n  halo of a tile: {} latent pixels, {} pixels", r.halo, r.halo_pixels)
}
