//! Generation metadata: everything a picture was made from, so that it can be made again and compared.

use std::collections::BTreeMap;

use serde_json::json;

use crate::{
    attribution::Attribution,
    engine::plan::Spec,
    image_out::{DIGITAL_SOURCE, Metadata},
    model::checkpoint::Checkpoint,
};

/// Origin of a picture, a concept of IPTC's digital source types.
#[derive(Clone, Copy, Debug, PartialEq, Eq, strum::IntoStaticStr)]
#[strum(serialize_all = "camelCase")]
pub enum DigitalSource {
    /// The model alone.
    TrainedAlgorithmicMedia,
    /// The model and a given picture.
    CompositeWithTrainedAlgorithmicMedia,
}

/// Metadata of a picture that was decoded from given latents; `description` is the sentence that viewers show.
pub fn decoded(
    model: &Checkpoint,
    device: &str,
    (width, height): (usize, usize),
    description: String,
    source: DigitalSource,
) -> Metadata {
    let source: &str = source.into();
    let entries = [
        (DIGITAL_SOURCE, json!(source)),
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
    let origin = match source {
        None => DigitalSource::TrainedAlgorithmicMedia,
        Some(_) => DigitalSource::CompositeWithTrainedAlgorithmicMedia,
    };
    let mut metadata = decoded(model, device, (spec.width, spec.height), description, origin);
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

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// An edited picture is told from one that the model alone has made.
    #[test]
    fn digital_source_tells_edits_from_generated_pictures() {
        // Relative to the package's root, where cargo runs tests.
        let model = Checkpoint::open(Path::new("tests/fixtures/net-a.safetensors")).unwrap();
        let spec = Spec::new(&model.arch, 1);
        let attribution = Attribution::default();
        let source = |given| generated(&model, "CPU", &spec, given).receipt[DIGITAL_SOURCE].clone();
        assert_eq!(source(None), "trainedAlgorithmicMedia");
        let edited = source(Some(("00", &attribution)));
        assert_eq!(edited, "compositeWithTrainedAlgorithmicMedia");
    }
}
