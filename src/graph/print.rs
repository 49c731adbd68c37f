//! A graph as text: a table of its nodes, and the DOT language of Graphviz.

use std::fmt::{self, Write as _};

use super::{Graph, Node, Source, Value, tensor_bytes};
use crate::ops::Op;

/// Text of a [`Graph`]; see [`Graph::table`] and [`Graph::dot`].
struct Text<'a>(&'a Graph, fn(&Graph, &mut fmt::Formatter<'_>) -> fmt::Result);

impl fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (self.1)(self.0, f)
    }
}

impl Graph {
    /// A table: for each node its number, the operator with its arguments, the numbers of its inputs, its shape,
    /// megaflops, mebibytes and layer. Results are marked with an arrow.
    pub fn table(&self) -> impl fmt::Display + '_ {
        Text(self, |graph, f| graph.write_table(f))
    }

    /// The graph in the DOT language of Graphviz.
    pub fn dot(&self) -> impl fmt::Display + '_ {
        Text(self, |graph, f| graph.write_dot(f))
    }

    fn write_table(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let titles = ("node", "operator", "inputs", "shape", "MFLOP", "MiB", "layer");
        let (node, operator, inputs, shape, flops, bytes, layer) = titles;
        writeln!(
            f,
            "{node:>6}  {operator:<24}{inputs:<16}{shape:<20}{flops:>10}{bytes:>10}  {layer}"
        )?;
        for (i, node) in self.nodes.iter().enumerate() {
            let mark = if self.outputs.iter().any(|output| output.0 == i) { '>' } else { ' ' };
            let (operator, inputs, layer) = match &node.source {
                Source::Input => ("input".to_owned(), String::new(), ""),
                Source::Operator { op, inputs } => {
                    let numbers: Vec<_> = inputs.iter().map(|input| input.0.to_string()).collect();
                    (label(op), numbers.join(" "), op.layer().unwrap_or_default())
                }
            };
            let (shape, flops) = (shape_text(node), self.flops(Value(i)) as f64 / 1e6);
            let bytes = tensor_bytes(node.shape) as f64 / f64::from(1 << 20);
            let row = format!(
                "{mark}{i:>5}  {operator:<24}{inputs:<16}{shape:<20}{flops:>10.3}{bytes:>10.3}  {layer}"
            );
            writeln!(f, "{}", row.trim_end())?;
        }
        Ok(())
    }

    fn write_dot(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "digraph {{\n  node [shape=box, fontname=\"sans-serif\"];")?;
        for (i, node) in self.nodes.iter().enumerate() {
            let mut text = match &node.source {
                Source::Input => "input".to_owned(),
                Source::Operator { op, .. } => label(op),
            };
            if let Source::Operator { op, .. } = &node.source
                && let Some(layer) = op.layer()
            {
                write!(text, "\\n{layer}")?;
            }
            let result = self.outputs.iter().any(|output| output.0 == i);
            let style = match (&node.source, result) {
                (Source::Input, _) => ", style=rounded",
                (_, true) => ", peripheries=2",
                _ => "",
            };
            writeln!(f, "  {i} [label=\"{text}\\n{}\"{style}];", shape_text(node))?;
            if let Source::Operator { inputs, .. } = &node.source {
                inputs.iter().try_for_each(|input| writeln!(f, "  {} -> {i};", input.0))?;
            }
        }
        writeln!(f, "}}")
    }
}

/// The operator with the arguments that its shape does not tell.
fn label(op: &Op) -> String {
    let silu = |silu: bool| if silu { " silu" } else { "" };
    let name = op.name();
    match op {
        Op::Conv2d(p) => format!("{name} {0}x{0}", p.kernel),
        Op::GroupNorm(p) => format!("{name} {}{}", p.groups, silu(p.silu)),
        Op::PixelNorm(p) => format!("{name}{}", silu(p.silu)),
        Op::ScaleShift(then) => format!("{name}{}", silu(*then)),
        Op::PixelShuffle(r) | Op::PixelUnshuffle(r) => format!("{name} {r}"),
        _ => name.to_owned(),
    }
}

fn shape_text(node: &Node) -> String {
    let s = node.shape;
    format!("{}x{}x{}x{}", s.n, s.h, s.w, s.c)
}
