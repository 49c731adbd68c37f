//! The JSON documents of both versions.

use serde::Deserialize;

use super::{Arch, AttentionRatio, Decoder, Encoder, Group, Label, Level, Noise, UNet};
use crate::error::{Error, Result};

/// The document of version 1.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Version1 {
    version: u32,
    name: String,
    width: usize,
    height: usize,
    levels: Vec<Level>,
    encoder: Encoder,
    decoder: Decoder,
    unet: UNet,
    noise: Noise,
    attention_ratio: AttentionRatio,
}

/// The document of version 2.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Version2 {
    version: u32,
    name: String,
    sizes: Vec<[usize; 2]>,
    levels: Vec<Level>,
    encoder: Encoder,
    decoder: Decoder,
    groups: Vec<Group>,
    labels: Vec<Label>,
    attention_ratio: AttentionRatio,
}

/// The field that tells the versions apart.
#[derive(Deserialize)]
struct Versioned {
    version: u32,
}

impl From<Version1> for Arch {
    fn from(document: Version1) -> Self {
        let levels = (0..document.levels.len()).collect();
        let (unet, noise) = (document.unet, document.noise);
        Self {
            version: document.version,
            name: document.name,
            sizes: vec![[document.width, document.height]],
            levels: document.levels,
            encoder: document.encoder,
            decoder: document.decoder,
            groups: vec![Group { name: "unet".into(), levels, unet, noise, guidance: None }],
            labels: Vec::new(),
            attention_ratio: document.attention_ratio,
        }
    }
}

impl From<Version2> for Arch {
    fn from(document: Version2) -> Self {
        let Version2 {
            version,
            name,
            sizes,
            levels,
            encoder,
            decoder,
            groups,
            labels,
            attention_ratio,
        } = document;
        Self { version, name, sizes, levels, encoder, decoder, groups, labels, attention_ratio }
    }
}

impl Arch {
    /// Reads and checks the document.
    ///
    /// # Errors
    /// [`crate::error::Kind::InvalidModel`] when it is not JSON of this form or its parts do not fit together.
    pub fn from_json(text: &str) -> Result<Self> {
        let malformed =
            |e| Error::model("arch", "malformed", "an architecture of this version").with_source(e);
        let Versioned { version } = serde_json::from_str(text).map_err(malformed)?;
        let arch: Self = match version {
            1 => serde_json::from_str::<Version1>(text).map_err(malformed)?.into(),
            2 => serde_json::from_str::<Version2>(text).map_err(malformed)?.into(),
            _ => return Err(Error::model("arch.version", version, "1 or 2")),
        };
        arch.validate()?;
        Ok(arch)
    }
}
