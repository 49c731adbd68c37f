//! A model and its file: exactly the parameters that the architecture needs, by name and shape.

use std::{collections::BTreeMap, io::Read, num::NonZeroU64, path::Path, sync::Arc};

use crate::{
    error::{Error, Result},
    model::{
        arch::{Arch, Label, Level},
        noise::philox4x32,
        params::{latent_stats, params},
        safetensors::{Metadata, Reader},
    },
    ops::weights::Weights,
};

/// Statistics of a level's latent over the training pictures: normalised = (z - mean) / std * sigma_data, per channel.
#[derive(Clone, Debug, PartialEq)]
pub struct LatentStats {
    /// Mean per channel.
    pub mean: Vec<f32>,
    /// Standard deviation per channel, positive.
    pub std: Vec<f32>,
}

/// A model: architecture, parameters and statistics.
///
/// ```
/// use tessera::model::checkpoint::Checkpoint;
///
/// let model = Checkpoint::open("tests/fixtures/net-a.safetensors".as_ref())?;
/// assert_eq!((model.arch.width(), model.arch.height()), (96, 64));
/// assert_eq!(model.arch.levels.len(), model.latent_stats.len());
/// # Ok::<(), tessera::error::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Checkpoint {
    /// The architecture.
    pub arch: Arch,
    /// All parameters, as f32.
    pub weights: Arc<Weights>,
    /// SHA-256 of the file, in hexadecimal.
    pub sha256: String,
    /// Statistics of the latents, one entry per level, finest first.
    pub latent_stats: Vec<LatentStats>,
    /// Labels of training pictures, a sample of them: for each label the row of its table. Empty for a model without.
    pub label_rows: Vec<Vec<usize>>,
    /// The file's metadata, including `arch` and `format`.
    pub metadata: Metadata,
}

impl Checkpoint {
    /// Reads a checkpoint from a file.
    ///
    /// # Errors
    /// [`crate::error::Kind::Io`] when it can't be opened, [`crate::error::Kind::InvalidModel`] when its contents are
    /// damaged, hostile, or not the parameters of its architecture.
    pub fn open(path: &Path) -> Result<Self> {
        Self::from_reader(Reader::open(path)?)
    }

    /// Reads a checkpoint from memory.
    ///
    /// # Errors
    /// As [`Checkpoint::open`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        Self::from_reader(Reader::new(bytes, bytes.len() as u64)?)
    }

    /// The model that is embedded in this program.
    ///
    /// # Errors
    /// [`crate::error::Kind::InvalidArgument`] when the program was built without one.
    pub fn default_model() -> Result<Self> {
        #[cfg(feature = "default-model")]
        return Self::from_bytes(include_bytes!("../../models/scenery.safetensors"));
        #[cfg(not(feature = "default-model"))]
        Err(Error::missing("model", "a checkpoint file: this build has no embedded model"))
    }

    fn from_reader(reader: Reader<impl Read>) -> Result<Self> {
        match reader.metadata().get("format").map(String::as_str) {
            Some("tessera") => {}
            other => {
                let found = other.unwrap_or("missing");
                return Err(Error::model("metadata format", found, "tessera"));
            }
        }
        let text = reader.metadata().get("arch");
        let missing = || Error::model("metadata arch", "missing", "an architecture");
        let arch = Arch::from_json(text.ok_or_else(missing)?)?;
        // Before the values are read: a file of another shape costs no memory.
        let expected = params(&arch)?;
        check(&reader, &arch, &expected)?;
        let contents = reader.read()?;

        let mut weights = Weights::default();
        for (name, param) in contents.tensors {
            weights.insert(name, param);
        }
        let stats = |(l, level): (usize, &Level)| {
            let [mean, std] = latent_stats(l);
            let stats = LatentStats {
                mean: weights.get(&mean, &[level.channels])?.data.clone(),
                std: weights.get(&std, &[level.channels])?.data.clone(),
            };
            match stats.std.iter().position(|&v| v <= 0.0) {
                Some(at) => {
                    let value = stats.std[at];
                    Err(Error::model(format!("tensor {std}[{at}]"), value, "a positive number"))
                }
                None => Ok(stats),
            }
        };
        let latent_stats = arch.levels.iter().enumerate().map(stats).collect::<Result<_>>()?;
        let label_rows = label_rows(&arch, &weights)?;
        let (sha256, metadata) = (contents.sha256, contents.metadata);
        Ok(Self { arch, weights: Arc::new(weights), sha256, latent_stats, label_rows, metadata })
    }

    /// Rows of the labels' tables for a picture with `seed` and the values `named`, by the labels' names. What is not named
    /// is as in a training picture that the seed draws among those that agree most with what is.
    ///
    /// # Errors
    /// [`crate::error::Kind::InvalidArgument`] naming a label or a value that the model does not have, and those that it
    /// has.
    pub fn labels(&self, seed: u64, named: &BTreeMap<String, String>) -> Result<Vec<usize>> {
        let list = |names: &mut dyn Iterator<Item = &str>| {
            let names: Vec<_> = names.collect();
            match names.is_empty() {
                true => "no label: the model has none".to_owned(),
                false => format!("one of {}", names.join(", ")),
            }
        };
        let mut rows = vec![0; self.arch.labels.len()];
        for (name, value) in named {
            let label = self.arch.labels.iter().position(|label| label.name == *name);
            let at = label.ok_or_else(|| {
                let names = list(&mut self.arch.labels.iter().map(|label| label.name.as_str()));
                Error::invalid("labels", name, names)
            })?;
            let values = &self.arch.labels[at].values;
            let found = values.iter().position(|known| known == value).ok_or_else(|| {
                let names = list(&mut values.iter().map(String::as_str));
                Error::invalid(format!("labels.{name}"), value, names)
            })?;
            rows[at] = 1 + found;
        }
        let agreement = |picture: &Vec<usize>| {
            picture.iter().zip(&rows).filter(|(its, wanted)| **wanted > 0 && its == wanted).count()
        };
        let most = self.label_rows.iter().map(agreement).max().unwrap_or(0);
        let alike: Vec<_> =
            self.label_rows.iter().filter(|picture| agreement(picture) == most).collect();
        if let Some(count) = NonZeroU64::new(alike.len() as u64) {
            let [word, ..] = philox4x32(LABELS, [seed as u32, (seed >> 32) as u32]);
            let drawn = alike[((u64::from(word) * count.get()) >> 32) as usize];
            for (row, its) in rows.iter_mut().zip(drawn).filter(|(row, _)| **row == 0) {
                *row = *its;
            }
        }
        Ok(rows)
    }
}

/// Philox's counter for the draw of labels: a level that no model has.
const LABELS: [u32; 4] = [u32::MAX, 0, 0, 0];

/// Name of the tensor of the labels of training pictures, [pictures, labels].
const LABEL_ROWS: &str = "labels.rows";

/// Most training pictures whose labels a checkpoint has.
const MAX_LABEL_ROWS: usize = 1 << 16;

/// The labels of training pictures in `weights`; none if it has no such tensor.
fn label_rows(arch: &Arch, weights: &Weights) -> Result<Vec<Vec<usize>>> {
    let Some((_, param)) = weights.iter().find(|(name, _)| *name == LABEL_ROWS) else {
        return Ok(Vec::new());
    };
    let row = |values: &[f32]| -> Result<Vec<usize>> {
        let of = |(&value, label): (&f32, &Label)| {
            let most = label.values.len();
            let whole = value.fract() == 0.0 && (0.0..=most as f32).contains(&value);
            match whole {
                true => Ok(value as usize),
                false => {
                    let expected = format!("a whole number from 0 to {most}");
                    Err(Error::model(format!("tensor {LABEL_ROWS}"), value, expected))
                }
            }
        };
        values.iter().zip(&arch.labels).map(of).collect()
    };
    param.data.chunks_exact(arch.labels.len().max(1)).map(row).collect()
}

/// Checks that the file has every expected tensor with its shape, and no other.
fn check(reader: &Reader<impl Read>, arch: &Arch, expected: &[(String, Vec<usize>)]) -> Result<()> {
    let mut found: BTreeMap<&str, &[usize]> = reader.shapes().collect();
    for (name, wanted) in expected {
        match found.remove(name.as_str()) {
            None => {
                return Err(Error::model(
                    format!("tensor {name}"),
                    "missing",
                    format!("shape {wanted:?}"),
                ));
            }
            Some(shape) if shape != wanted.as_slice() => {
                let (field, wanted) = (format!("tensor {name} shape"), format!("{wanted:?}"));
                return Err(Error::model(field, format!("{shape:?}"), wanted));
            }
            Some(_) => {}
        }
    }
    // It may have the labels of any number of training pictures.
    let labels = arch.labels.len();
    if let Some(shape) = found.get(LABEL_ROWS).filter(|_| labels > 0) {
        let ok = matches!(shape, [rows, its] if *its == labels && *rows <= MAX_LABEL_ROWS);
        if !ok {
            let field = format!("tensor {LABEL_ROWS} shape");
            let wanted = format!("[pictures, {labels}], at most {MAX_LABEL_ROWS} pictures");
            return Err(Error::model(field, format!("{shape:?}"), wanted));
        }
        found.remove(LABEL_ROWS);
    }
    match found.keys().next() {
        Some(name) => Err(Error::model("tensor name", name, "a parameter of the architecture")),
        None => Ok(()),
    }
}
