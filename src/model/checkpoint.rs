//! A model and its file: exactly the parameters that the architecture needs, by name and shape.

use std::{collections::BTreeMap, io::Read, path::Path, sync::Arc};

use crate::{
    error::{Error, Result},
    model::{
        arch::{Arch, Level},
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
/// assert_eq!((model.arch.width, model.arch.height), (96, 64));
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
        check(&reader, &expected)?;
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
        let (sha256, metadata) = (contents.sha256, contents.metadata);
        Ok(Self { arch, weights: Arc::new(weights), sha256, latent_stats, metadata })
    }
}

/// Checks that the file has every expected tensor with its shape, and no other.
fn check(reader: &Reader<impl Read>, expected: &[(String, Vec<usize>)]) -> Result<()> {
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
    match found.keys().next() {
        Some(name) => Err(Error::model("tensor name", name, "a parameter of the architecture")),
        None => Ok(()),
    }
}
