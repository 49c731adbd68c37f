//! Checks that the parts of an architecture fit together.

use std::{collections::BTreeSet, fmt};

use super::{Arch, GroupShape, Norm, RgbUpsampling};
use crate::error::{Error, Expected, Result};

/// Largest width of any layer: bounds the memory that a hostile document can ask for.
pub const MAX_CHANNELS: usize = 8192;
/// Largest number of blocks of a stage.
pub const MAX_BLOCKS: usize = 64;
/// Largest number of labels.
pub const MAX_LABELS: usize = 64;
/// Largest number of values of a label.
pub const MAX_VALUES: usize = 256;
/// Largest factor of a level.
pub const MAX_FACTOR: usize = 4096;

impl Arch {
    /// Checks every part of the architecture.
    ///
    /// # Errors
    /// [`crate::error::Kind::InvalidModel`] with the field, its value and what is expected.
    pub(super) fn validate(&self) -> Result<()> {
        let factors: Vec<usize> = self.spatial_levels().iter().map(|level| level.factor).collect();
        need(!factors.is_empty(), "levels", &0, "at least one with a factor")?;
        for &f in &factors {
            let ok = f.is_power_of_two() && (2..=MAX_FACTOR).contains(&f);
            need(ok, "levels.factor", &f, format!("a power of two from 2 to {MAX_FACTOR}"))?;
        }
        let increasing = factors.is_sorted_by(|a, b| a < b);
        need(increasing, "levels.factor", &format!("{factors:?}"), "increasing factors")?;
        let coarsest = self.coarsest_factor();
        need(!self.sizes.is_empty(), "sizes", &0, "at least one")?;
        for [width, height] in &self.sizes {
            for (name, &extent) in [("width", width), ("height", height)] {
                let ok = extent > 0 && extent % coarsest == 0 && extent <= 1 << 20;
                need(ok, name, &extent, format!("a multiple of {coarsest} up to {}", 1 << 20))?;
            }
        }
        check_stages("encoder", self.encoder.unshuffle, self.encoder.stages.len(), coarsest)?;
        check_stages("decoder", self.decoder.shuffle, self.decoder.stages.len(), coarsest)?;
        for (name, value) in [
            ("encoder.unshuffle", self.encoder.unshuffle),
            ("decoder.shuffle", self.decoder.shuffle),
        ] {
            need(value <= factors[0], name, &value, format!("at most {}", factors[0]))?;
        }
        let local = (factors[0] / self.decoder.shuffle).ilog2() as usize;
        for (i, stage) in self.decoder.stages.iter().take(local).enumerate() {
            let field = format!("decoder.stages[{i}].attention");
            need(!stage.attention, &field, &true, "false in the local stage")?;
        }
        let widths = (self.levels.iter().map(|l| (l.channels, 0)))
            .chain(self.encoder.stages.iter().map(|s| (s.channels, s.blocks)))
            .chain(self.decoder.stages.iter().map(|s| (s.channels, s.blocks)));
        check_widths(widths)?;
        self.validate_labels()?;
        let covered: Vec<usize> =
            self.groups.iter().rev().flat_map(|group| group.levels.iter().copied()).collect();
        let each_once = covered.iter().copied().eq(0..self.levels.len());
        let expected = "every level once, the groups of coarse levels first";
        need(each_once, "groups.levels", &format!("{covered:?}"), expected)?;
        if self.version == 1 {
            let plain = self.decoder.rgb == RgbUpsampling::Nearest
                && self.decoder.stages.iter().all(|stage| !stage.noise);
            need(plain, "decoder", &"with rgb or noise", "a decoder of version 1")?;
            let unet = &self.groups[0].unet;
            let plain = unet.norm == Norm::Group && !unet.coordinates;
            need(plain, "unet", &"with norm or coordinates", "a U-Net of version 1")?;
        }
        for shape in self.group_shapes() {
            self.validate_group(shape)?;
        }
        Ok(())
    }

    fn validate_labels(&self) -> Result<()> {
        let count = self.labels.len();
        need(count <= MAX_LABELS, "labels", &count, format!("at most {MAX_LABELS}"))?;
        let mut names = BTreeSet::new();
        for label in &self.labels {
            need(names.insert(&label.name), "labels.name", &label.name, "names that differ")?;
            let values: BTreeSet<_> = label.values.iter().collect();
            let field = format!("labels.{}.values", label.name);
            let ok = !values.is_empty() && values.len() == label.values.len();
            need(ok, &field, &format!("{:?}", label.values), "values that differ, at least one")?;
            let count = values.len();
            need(count <= MAX_VALUES, &field, &count, format!("at most {MAX_VALUES}"))?;
        }
        Ok(())
    }

    fn validate_group(&self, shape: GroupShape<'_>) -> Result<()> {
        let (unet, noise) = (&shape.group.unet, &shape.group.noise);
        let prefix = match self.version {
            1 => String::new(),
            _ => format!("groups[{}].", shape.index),
        };
        let field = |name: &str| format!("{prefix}{name}");
        let factors: Vec<usize> = shape.spatial_levels().iter().map(|level| level.factor).collect();
        let Some(&finest) = factors.first() else {
            return need(false, &field("levels"), &"the 1x1 level alone", "one with a factor");
        };
        let coarsest = self.coarsest_factor();
        let first = finest.saturating_mul(unet.unshuffle);
        let within = first.is_power_of_two() && first <= coarsest;
        let expected = format!("a power of two up to {coarsest}");
        need(within, &field("unet first factor"), &first, expected)?;
        let most = (coarsest / first).ilog2() as usize + 1;
        let count = unet.stages.len();
        // With the 1x1 level the stages end at the group's coarsest grid, else at it or beyond.
        let own = factors[factors.len() - 1];
        let least = if own >= first { (own / first).ilog2() as usize + 1 } else { 1 };
        let exact = self.version == 1 || shape.has_global();
        let ok = if exact { count == least } else { (least..=most).contains(&count) };
        let end = if exact { own } else { coarsest };
        let expected = match exact {
            true => format!("{least} for factors {first} to {end}"),
            false => format!("from {least} to {most} for factors {first} to {end}"),
        };
        need(ok, &field("unet.stages"), &format!("{count} entries"), expected)?;
        let next = self.levels.get(shape.range().start + 1).map_or(0, |level| level.factor);
        let inside = factors.len() == 1 || first < next;
        let beside = next == 0 || first <= next;
        let expected =
            format!("less than takes the finest level, {finest}, beyond the next one's factor");
        need(inside && beside, &field("unet.unshuffle"), &unet.unshuffle, expected)?;
        for (i, stage) in unet.stages.iter().enumerate() {
            let name = field(&format!("unet.stages[{i}]"));
            need(stage.blocks >= 1, &format!("{name}.blocks"), &stage.blocks, "at least 1")?;
            need(!stage.noise, &format!("{name}.noise"), &true, "false in a U-Net")?;
            let ok = unet.norm == Norm::Group || !stage.attention;
            need(ok, &format!("{name}.attention"), &true, "false with the norm pixel")?;
        }
        let ok = unet.norm == Norm::Group || !shape.has_global();
        need(ok, &field("unet.norm"), &"pixel", "group with the 1x1 level")?;
        let widths = unet.stages.iter().map(|s| (s.channels, s.blocks));
        check_widths(widths.chain([(unet.embedding, 0), (unet.global_channels, 0)]))?;
        let even = unet.embedding.is_multiple_of(2);
        need(even, &field("unet.embedding"), &unet.embedding, "an even number")?;
        let (count, levels) = (noise.shift.len(), shape.group.levels.len());
        let expected = format!("one for each of {levels} levels");
        need(count == levels, &field("noise.shift"), &format!("{count} entries"), expected)?;
        for (name, value) in
            [("sigma_data", noise.sigma_data), ("sigma_min", noise.sigma_min), ("rho", noise.rho)]
        {
            let ok = value.is_finite() && value > 0.0;
            need(ok, &field(&format!("noise.{name}")), &value, "a positive number")?;
        }
        let same = noise.sigma_data == self.sigma_data();
        let expected = format!("that of the first group, {}", self.sigma_data());
        need(same, &field("noise.sigma_data"), &noise.sigma_data, expected)?;
        let ok = noise.sigma_max.is_finite() && noise.sigma_max > noise.sigma_min;
        let expected = format!("more than sigma_min, {}", noise.sigma_min);
        need(ok, &field("noise.sigma_max"), &noise.sigma_max, expected)?;
        for &shift in &noise.shift {
            let ok = shift.is_finite() && shift.abs() <= 20.0;
            need(ok, &field("noise.shift"), &shift, "from -20 to 20")?;
        }
        if let Some([low, high]) = shape.group.guidance {
            let ok = 0.0 <= low && low < high && high.is_finite();
            let value = format!("[{low}, {high}]");
            need(ok, &field("guidance"), &value, "[low, high] with 0 <= low < high")?;
        }
        Ok(())
    }
}

/// `Ok` if `ok`, else an error that names the field, the value and what is expected.
fn need(
    ok: bool,
    field: &str,
    value: &dyn fmt::Display,
    expected: impl Into<Expected>,
) -> Result<()> {
    if ok { Ok(()) } else { Err(Error::model(format!("arch.{field}"), value, expected)) }
}

/// Checks that `count` stages go from the factor `first` to `coarsest`.
fn check_stages(name: &str, first: usize, count: usize, coarsest: usize) -> Result<()> {
    let within = first.is_power_of_two() && first <= coarsest;
    let expected = format!("a power of two up to {coarsest}");
    need(within, &format!("{name} first factor"), &first, expected)?;
    let wanted = (coarsest / first).ilog2() as usize + 1;
    let expected = format!("{wanted} for factors {first} to {coarsest}");
    need(count == wanted, &format!("{name}.stages"), &format!("{count} entries"), expected)
}

/// Checks channels and blocks.
fn check_widths(widths: impl Iterator<Item = (usize, usize)>) -> Result<()> {
    for (channels, blocks) in widths {
        let ok = (1..=MAX_CHANNELS).contains(&channels);
        need(ok, "channels", &channels, format!("from 1 to {MAX_CHANNELS}"))?;
        need(blocks <= MAX_BLOCKS, "blocks", &blocks, format!("at most {MAX_BLOCKS}"))?;
    }
    Ok(())
}
