//! Generation metadata: everything a picture was made from, so that it can be made again and compared.

use std::collections::BTreeMap;

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

/// The labels of `spec` that are given, by name.
pub fn labels<'a>(model: &'a Checkpoint, spec: &Spec) -> BTreeMap<&'a str, &'a str> {
    let given = model.arch.labels.iter().zip(&spec.labels);
    given
        .filter_map(|(label, row)| {
            let value = label.values.get(row.checked_sub(1)?)?;
            Some((label.name.as_str(), value.as_str()))
        })
        .collect()
}

/// The steps of each of the model's groups by name; empty for a model of one group.
pub fn group_steps<'a>(model: &'a Checkpoint, spec: &Spec) -> BTreeMap<&'a str, usize> {
    let groups = &model.arch.groups;
    match groups.len() {
        1 => BTreeMap::new(),
        n => groups.iter().map(|group| group.name.as_str()).zip(spec.steps.of_groups(n)).collect(),
    }
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
    let mut description =
        format!("{name}, seed {}, {sampler} {} steps", spec.seed, spec.steps.total());
    if let Some(strength) = spec.strength {
        description += &format!(", a given picture changed by {strength}");
    }
    let mut metadata = decoded(model, device, (spec.width, spec.height), description);
    for (key, value) in [
        ("seed", json!(spec.seed)),
        // For readers of JSON whose numbers are exact up to 2^53 only.
        ("seed_text", json!(spec.seed.to_string())),
        ("steps", json!(spec.steps.total())),
        ("sampler", json!(sampler)),
    ] {
        metadata.receipt.insert(key.to_owned(), value);
    }
    let groups = group_steps(model, spec);
    if !groups.is_empty() {
        metadata.receipt.insert("group_steps".to_owned(), json!(groups));
    }
    let labels = labels(model, spec);
    if !labels.is_empty() {
        metadata.receipt.insert("labels".to_owned(), json!(labels));
        metadata.receipt.insert("guidance".to_owned(), json!(spec.guidance));
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
