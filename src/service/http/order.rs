//! An order as it stands in an address: `strength=0.5&seed=7`, fields of `JobSpec` and `CreateJobRequest`.

use std::str::FromStr;

use crate::{
    api::{CreateJobRequest, JobSpec, Sampler},
    error::{Error, Result},
};

/// Reads a query.
///
/// # Errors
/// [`crate::error::Kind::InvalidArgument`] naming the field that is unknown, stands twice or can't be read.
pub(super) fn parse(query: &str) -> Result<CreateJobRequest> {
    let (mut spec, mut request_id, mut seen) = (JobSpec::default(), String::new(), Vec::new());
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (field, value) = pair.split_once('=').unwrap_or((pair, ""));
        if seen.contains(&field) {
            return Err(Error::invalid(field.to_owned(), "given twice", "one value"));
        }
        seen.push(field);
        match field {
            "seed" => spec.seed = number(field, value)?,
            "width" => spec.width = number(field, value)?,
            "height" => spec.height = number(field, value)?,
            "steps" => spec.steps = number(field, value)?,
            "tile_size" => spec.tile_size = number(field, value)?,
            "bits" => spec.bits = number(field, value)?,
            "strength" => spec.strength = Some(number(field, value)?),
            "sampler" => {
                let name = format!("SAMPLER_{}", value.to_ascii_uppercase());
                let sampler = Sampler::from_str_name(&name);
                spec.sampler = sampler.ok_or_else(|| unreadable(field, value))?.into();
            }
            "request_id" if value.bytes().all(is_plain) => request_id = value.to_owned(),
            "request_id" => return Err(unreadable(field, value)),
            other => {
                return Err(Error::invalid(other.to_owned(), "unknown", "a field of JobSpec"));
            }
        }
    }
    Ok(CreateJobRequest { spec: Some(spec), request_id, ..Default::default() })
}

/// Letters, digits and what needs no escape in an address.
fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~".contains(&byte)
}

fn number<T: FromStr>(field: &str, value: &str) -> Result<T> {
    value.parse().map_err(|_| unreadable(field, value))
}

fn unreadable(field: &str, value: &str) -> Error {
    Error::invalid(field.to_owned(), format!("{value:?}"), "a value of the field's type")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_read_and_wrong_ones_named() {
        let order = parse("strength=0.25&seed=7&steps=9&sampler=heun&bits=16&request_id=a-1");
        let order = order.unwrap_or_default();
        let spec = order.spec.unwrap_or_default();
        assert_eq!((spec.strength, spec.seed, spec.steps, spec.bits), (Some(0.25), 7, 9, 16));
        assert_eq!((spec.sampler(), order.request_id.as_str()), (Sampler::Heun, "a-1"));
        for (query, field) in [
            ("seed=-1", "seed"),
            ("seed=1&seed=2", "seed"),
            ("steps=99999999999", "steps"),
            ("sampler=best", "sampler"),
            ("strength=much", "strength"),
            ("request_id=a%20b", "request_id"),
            ("colour=red", "colour"),
            ("width", "width"),
        ] {
            let error = parse(query).err();
            assert_eq!(error.as_ref().and_then(Error::field), Some(field), "{query}");
        }
    }
}
