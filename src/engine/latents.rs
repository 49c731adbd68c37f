//! Files of latents: safetensors with one F32 tensor `latent.<l>` [rows, columns, channels] per level, finest first, as
//! the decoder takes them (not normalised), and in the metadata the picture's size and the model they belong to.

use std::{collections::HashMap, fmt::Write as _, path::Path};

use std::io::Write as _;

use serde_json::{Map, Value, json};

use crate::{
    engine::plan::{MAX_EXTENT, latent_shapes},
    error::{Error, Result},
    image_out::AtomicFile,
    model::{checkpoint::Checkpoint, safetensors::SafeTensors, sampler::Latent},
};

/// Value of `format` in the metadata.
const FORMAT: &str = "tessera-latents";

/// The latents of one picture.
#[derive(Clone, Debug, PartialEq)]
pub struct LatentFile {
    /// Width of the picture, which the grids may reach past.
    pub width: usize,
    /// Height of the picture.
    pub height: usize,
    /// Latents, finest first, not normalised.
    pub latents: Vec<Latent>,
}

impl LatentFile {
    /// Writes the file: whole, or not at all.
    ///
    /// # Errors
    /// [`crate::error::Kind::Io`] when it can't be written.
    pub fn write(&self, path: &Path, model: &Checkpoint) -> Result<u64> {
        let mut header = Map::new();
        let metadata = json!({
            "format": FORMAT,
            "width": self.width.to_string(),
            "height": self.height.to_string(),
            "model": model.arch.name,
            "model_sha256": model.sha256,
        });
        header.insert("__metadata__".into(), metadata);
        let mut offset = 0;
        for (l, latent) in self.latents.iter().enumerate() {
            let end = offset + 4 * latent.data.len();
            let shape = [latent.shape.h, latent.shape.w, latent.shape.c];
            let entry = json!({ "dtype": "F32", "shape": shape, "data_offsets": [offset, end] });
            header.insert(format!("latent.{l}"), entry);
            offset = end;
        }
        let mut header = Value::Object(header).to_string();
        // The format wants the data aligned to 8 bytes; spaces may follow the header.
        while header.len() % 8 != 0 {
            header.push(' ');
        }
        let mut file = AtomicFile::create(path)?;
        let mut write = |bytes: &[u8]| {
            file.write_all(bytes).map_err(|e| Error::io("can't write", path, e))
        };
        write(&(header.len() as u64).to_le_bytes())?;
        write(header.as_bytes())?;
        for latent in &self.latents {
            for values in latent.data.chunks(1 << 14) {
                write(&values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>())?;
            }
        }
        file.commit()?;
        Ok((8 + header.len() + offset) as u64)
    }
}
