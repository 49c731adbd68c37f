//! A job in the query of a URL: `strength=0.5&seed=7&labels.time=dusk`, fields of `JobSpec` and `CreateJobRequest`.

use std::{collections::BTreeMap, error::Error as _, str::FromStr};

use axum::{
    extract::{Query, rejection::QueryRejection},
    http::Uri,
};
use serde::{Deserialize, Deserializer, de::Error as _};

use crate::{
    api::{CreateJobRequest, JobSpec, Sampler},
    error::{Error, Result},
};

/// The fields of a query. Numbers that are not given are 0, the default as in `JobSpec`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct JobQuery {
    model: String,
    seed: u64,
    width: u32,
    height: u32,
    steps: u32,
    tile_size: u32,
    bits: u32,
    strength: Option<f64>,
    #[serde(deserialize_with = "sampler")]
    sampler: Sampler,
    guidance: Option<f64>,
    request_id: String,
}

/// A sampler by its lower-case name.
fn sampler<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Sampler, D::Error> {
    let name = String::deserialize(deserializer)?;
    let sampler = Sampler::from_str_name(&format!("SAMPLER_{}", name.to_ascii_uppercase()));
    sampler.ok_or_else(|| D::Error::custom("unknown sampler"))
}

/// Reads the query of `uri`.
///
/// # Errors
/// [`InvalidArgument`](crate::error::Kind::InvalidArgument) naming the field that is unknown or can't be parsed, or `query`
/// if a field is given twice.
pub(super) fn parse(uri: &Uri) -> Result<CreateJobRequest> {
    let text = uri.query().unwrap_or_default();
    // Entries of maps are fields of their own: NAME.KEY=VALUE.
    let (labels, rest) = entries(text, "labels")?;
    let (group_steps, rest) = entries(&rest, "group_steps")?;
    let rest = Uri::from_str(&format!("/?{rest}"))
        .map_err(|e| Error::invalid("query", format!("{text:?}"), "a query").with_source(e))?;
    let Query(query) = Query::<JobQuery>::try_from_uri(&rest).map_err(|rejection| {
        let field = field(&rejection).unwrap_or_else(|| "query".to_owned());
        Error::invalid(field, format!("malformed in {text:?}"), "fields of JobSpec, each once")
            .with_source(rejection)
    })?;
    let spec = JobSpec {
        model: query.model,
        seed: query.seed,
        width: query.width,
        height: query.height,
        steps: query.steps,
        tile_size: query.tile_size,
        bits: query.bits,
        strength: query.strength,
        sampler: query.sampler.into(),
        labels,
        guidance: query.guidance,
        group_steps,
    };
    let request_id = query.request_id;
    Ok(CreateJobRequest { spec: Some(spec), request_id, ..CreateJobRequest::default() })
}

/// The entries `map.KEY=VALUE` of the query `text`, and the other fields as a query.
fn entries<V: FromStr>(text: &str, map: &str) -> Result<(BTreeMap<String, V>, String)> {
    let mut found = BTreeMap::new();
    let mut rest = Vec::new();
    for part in text.split('&') {
        let is_entry = part.strip_prefix(map).is_some_and(|key| key.starts_with('.'));
        if !is_entry {
            rest.push(part);
            continue;
        }
        let invalid = |field: &str| {
            let field = field.to_owned();
            Error::invalid(field, format!("malformed in {text:?}"), "NAME.KEY=VALUE, each once")
        };
        let uri = Uri::from_str(&format!("/?{part}")).map_err(|_| invalid(map))?;
        let Query(pairs) =
            Query::<Vec<(String, String)>>::try_from_uri(&uri).map_err(|_| invalid(map))?;
        for (key, value) in pairs {
            let name = key.get(map.len() + 1..).unwrap_or_default().to_owned();
            let value = value.parse().map_err(|_| invalid(&key))?;
            if found.insert(name, value).is_some() {
                return Err(invalid(&key));
            }
        }
    }
    Ok((found, rest.join("&")))
}

/// The field whose value was rejected.
fn field(rejection: &QueryRejection) -> Option<String> {
    type Located = serde_path_to_error::Error<serde::de::value::Error>;
    let mut cause = rejection.source();
    while let Some(error) = cause {
        if let Some(located) = error.downcast_ref::<Located>() {
            let mut segments = located.path().iter();
            return segments.next().map(ToString::to_string);
        }
        cause = error.source();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn query_fields_are_parsed_and_wrong_ones_named() {
        let parse = |query: &str| parse(&format!("/jobs?{query}").parse().unwrap());
        let query =
            "model=models/net-a&strength=0.25&seed=7&steps=9&sampler=heun&bits=16&request_id=a%20b";
        let order = parse(query).unwrap();
        let spec = order.spec.unwrap_or_default();
        assert_eq!(spec.model, "models/net-a");
        assert_eq!((spec.strength, spec.seed, spec.steps, spec.bits), (Some(0.25), 7, 9, 16));
        assert_eq!((spec.sampler(), order.request_id.as_str()), (Sampler::Heun, "a b"));
        let query =
            "labels.time=late%20dusk&seed=7&labels.water=lake&guidance=3&group_steps.layout=9";
        let spec = parse(query).unwrap().spec.unwrap_or_default();
        let labels = [("time", "late dusk"), ("water", "lake")].map(|(a, b)| (a.into(), b.into()));
        assert_eq!((spec.labels, spec.guidance, spec.seed), (labels.into(), Some(3.0), 7));
        assert_eq!(spec.group_steps, [("layout".into(), 9)].into());
        for (query, field) in [
            ("seed=-1", "seed"),
            ("seed=1&seed=2", "query"),
            ("steps=99999999999", "steps"),
            ("sampler=best", "sampler"),
            ("strength=much", "strength"),
            ("colour=red", "colour"),
            ("width", "width"),
            ("labels=x", "labels"),
            ("labels.time=dusk&labels.time=day", "labels.time"),
            ("group_steps.layout=-1", "group_steps.layout"),
            ("guidance=strong", "guidance"),
        ] {
            let error = parse(query).err();
            assert_eq!(error.as_ref().and_then(Error::field), Some(field), "{query}");
        }
    }
}
