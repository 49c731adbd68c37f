//! Files of latents: safetensors with one F32 tensor `latent.<l>` [rows, columns, channels] per level, finest first, as
//! the decoder takes them (not normalised), and in the metadata the picture's size and the model they belong to.

use std::{collections::BTreeMap, path::Path};

use crate::{
    engine::plan::MAX_EXTENT,
    error::{Error, Result},
    model::{
        checkpoint::Checkpoint,
        safetensors::{self, Metadata, Reader},
        sampler::{Latent, latent_shapes},
    },
    ops::Shape,
    store::AtomicFile,
};

/// Value of `format` in the metadata.
const FORMAT: &str = "tessera-latents";

/// The latents of one picture, and its size.
#[derive(Clone, Debug, PartialEq)]
pub struct LatentFile {
    /// Width of the picture in pixels; the grids may reach past it.
    pub width: usize,
    /// Height of the picture in pixels.
    pub height: usize,
    /// Latents [1, h, w, c], finest first, not normalised.
    pub latents: Vec<Latent>,
}

impl LatentFile {
    /// Writes the file atomically.
    ///
    /// # Errors
    /// [`crate::error::Kind::Io`] when it can't be written.
    pub fn write(&self, path: &Path, model: &Checkpoint) -> Result<()> {
        let metadata: Metadata = [
            ("format", FORMAT.to_owned()),
            ("width", self.width.to_string()),
            ("height", self.height.to_string()),
            ("model", model.arch.name.clone()),
            ("model_sha256", model.sha256.clone()),
        ]
        .map(|(key, value)| (key.to_owned(), value))
        .into();
        let names: Vec<_> = (0..self.latents.len()).map(name).collect();
        let shapes: Vec<_> = self.latents.iter().map(|latent| extents(latent.shape)).collect();
        let tensors: Vec<_> = (names.iter().zip(&shapes).zip(&self.latents))
            .map(|((name, shape), latent)| {
                (name.as_str(), shape.as_slice(), latent.data.as_slice())
            })
            .collect();
        let mut file = AtomicFile::create(path)?;
        safetensors::write(&mut file, &tensors, &metadata)?;
        file.commit()
    }

    /// Reads a file of latents that fit `model`.
    ///
    /// # Errors
    /// [`crate::error::Kind::Io`] when it can't be opened; [`crate::error::Kind::InvalidModel`] when it is damaged, of
    /// another kind, or its latents are not those of the model.
    pub fn read(path: &Path, model: &Checkpoint) -> Result<Self> {
        let bad = |field: &str, value: &str, expected: String| {
            Error::model(format!("{}: {field}", path.display()), value, expected)
        };
        let within = |e: Error| {
            Error::wrong(e.kind(), "latents", path.display(), "a file of latents").with_source(e)
        };
        let reader = Reader::open(path).map_err(within)?;
        let field = |name: &str| reader.metadata().get(name).map_or("missing", String::as_str);
        if field("format") != FORMAT {
            return Err(bad("metadata format", field("format"), FORMAT.into()));
        }
        let side = |name| match field(name).parse() {
            Ok(side) if (1..=MAX_EXTENT).contains(&side) => Ok(side),
            _ => Err(bad(name, field(name), format!("from 1 to {MAX_EXTENT}"))),
        };
        let (width, height) = (side("width")?, side("height")?);
        let factor = model.arch.coarsest_factor();
        let padded = (width.next_multiple_of(factor), height.next_multiple_of(factor));
        let expected = latent_shapes(&model.arch, 1, padded.0, padded.1);
        // Shapes are compared before the values are read: a file of another shape costs no memory.
        let found: BTreeMap<String, Vec<usize>> =
            reader.shapes().map(|(name, shape)| (name.to_owned(), shape.to_vec())).collect();
        let wanted: BTreeMap<String, Vec<usize>> =
            expected.iter().enumerate().map(|(l, &s)| (name(l), extents(s).to_vec())).collect();
        if found != wanted {
            let (found, arch) = (format!("{found:?}"), &model.arch.name);
            return Err(bad("latents", &found, format!("{wanted:?} for model {arch}")));
        }
        let mut tensors = reader.read().map_err(within)?.tensors;
        let latents = expected.into_iter().enumerate().map(|(l, shape)| {
            let param = tensors.remove(&name(l));
            param
                .map(|param| Latent { shape, data: param.data })
                .ok_or_else(|| bad(&name(l), "missing", format!("shape {shape:?}")))
        });
        Ok(Self { width, height, latents: latents.collect::<Result<_>>()? })
    }
}

fn name(level: usize) -> String {
    format!("latent.{level}")
}

fn extents(shape: Shape) -> [usize; 3] {
    [shape.h, shape.w, shape.c]
}
