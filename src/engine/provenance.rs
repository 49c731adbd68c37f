//! Generation metadata: everything a picture was made from, so that it can be made again and compared.

use serde_json::json;

use crate::{
    attribution::Attribution, engine::plan::Spec, image_out::Metadata,
    model::checkpoint::Checkpoint,
};

/// Metadata of a picture that was decoded from given latents; `description` is the sentence that viewers show.
pub fn decoded(
    model: &Checkpoint,
    device: &str,
    (width, height): (usize, usize),
    description: String,
) -> Metadata {
    let entries = [
        ("software", json!(Metadata::software())),
        ("model", json!(model.arch.name)),
        ("model_sha256", json!(model.sha256)),
        ("device", json!(device)),
        ("width", json!(width)),
        ("height", json!(height)),
    ];
    let receipt = entries.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
    Metadata { description, created: None, receipt }
}

/// Metadata of a picture that was generated or, with the SHA-256 and the attribution of the input file as `source`, edited.
/// The tile's size is left out, as it does not change a pixel.
pub fn generated(
    model: &Checkpoint,
    device: &str,
    spec: &Spec,
    source: Option<(&str, &Attribution)>,
) -> Metadata {
    let (name, sampler) = (&model.arch.name, spec.sampler.name());
    let mut description = format!("{name}, seed {}, {sampler} {} steps", spec.seed, spec.steps);
    if let Some(strength) = spec.strength {
        description += &format!(", a given picture changed by {strength}");
    }
    let mut metadata = decoded(model, device, (spec.width, spec.height), description);
    for (key, value) in [
        ("seed", json!(spec.seed)),
        // For readers of JSON whose numbers are exact up to 2^53 only.
        ("seed_text", json!(spec.seed.to_string())),
        ("steps", json!(spec.steps)),
        ("sampler", json!(sampler)),
    ] {
        metadata.receipt.insert(key.to_owned(), value);
    }
    if let Some(strength) = spec.strength {
        metadata.receipt.insert("strength".to_owned(), json!(strength));
    }
    if let Some((sha256, attribution)) = source {
        metadata.receipt.insert("source_sha256".to_owned(), json!(sha256));
        metadata.attribute(attribution);
    }
    metadata
}
