//! A job in the query of a URL: `strength=0.5&seed=7`, fields of `JobSpec` and `CreateJobRequest`.

use std::error::Error as _;

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
    seed: u64,
    width: u32,
    height: u32,
    steps: u32,
    tile_size: u32,
    bits: u32,
    strength: Option<f64>,
    #[serde(deserialize_with = "sampler")]
    sampler: Sampler,
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
    let Query(query) = Query::<JobQuery>::try_from_uri(uri).map_err(|rejection| {
        let field = field(&rejection).unwrap_or_else(|| "query".to_owned());
        let value = uri.query().unwrap_or_default();
        Error::invalid(field, format!("malformed in {value:?}"), "fields of JobSpec, each once")
            .with_source(rejection)
    })?;
    let JobQuery { seed, width, height, steps, tile_size, bits, strength, sampler, request_id } =
        query;
    let sampler = sampler.into();
    let spec = JobSpec {
        seed,
        width,
        height,
        steps,
        tile_size,
        bits,
        strength,
        sampler,
        ..JobSpec::default()
    };
    Ok(CreateJobRequest { spec: Some(spec), request_id, ..CreateJobRequest::default() })
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
        let query = "strength=0.25&seed=7&steps=9&sampler=heun&bits=16&request_id=a%20b";
        let order = parse(query).unwrap();
        let spec = order.spec.unwrap_or_default();
        assert_eq!((spec.strength, spec.seed, spec.steps, spec.bits), (Some(0.25), 7, 9, 16));
        assert_eq!((spec.sampler(), order.request_id.as_str()), (Sampler::Heun, "a b"));
        for (query, field) in [
            ("seed=-1", "seed"),
            ("seed=1&seed=2", "query"),
            ("steps=99999999999", "steps"),
            ("sampler=best", "sampler"),
            ("strength=much", "strength"),
            ("colour=red", "colour"),
            ("width", "width"),
        ] {
            let error = parse(query).err();
            assert_eq!(error.as_ref().and_then(Error::field), Some(field), "{query}");
        }
    }
}
