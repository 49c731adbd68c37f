//! Parameters by name, as f32 in PyTorch's layouts; what every interpreter prepares its own form from.

use std::collections::HashMap;

use crate::error::{Error, Result};

/// One parameter: row-major values of `shape`.
#[derive(Clone, Debug, PartialEq)]
pub struct Param {
    /// Extents, outermost first; convolutions are `[out, in, rows, columns]`.
    pub shape: Vec<usize>,
    /// Values, `shape`'s product of them.
    pub data: Vec<f32>,
}

/// The parameters of a model.
#[derive(Clone, Debug, Default)]
pub struct Weights(HashMap<String, Param>);

impl Weights {
    /// The parameter `name`, checked against the shape that the operator expects.
    ///
    /// # Errors
    /// [`crate::error::Kind::InvalidModel`] when it is missing or has another shape.
    pub fn get(&self, name: &str, shape: &[usize]) -> Result<&Param> {
        let wanted = || format!("shape {shape:?}");
        let missing = || Error::model(format!("parameter {name}"), "missing", wanted());
        let param = self.0.get(name).ok_or_else(missing)?;
        if param.shape != shape {
            let found = format!("of shape {:?}", param.shape);
            return Err(Error::model(format!("parameter {name}"), found, wanted()));
        }
        Ok(param)
    }

    /// Adds or replaces a parameter.
    pub fn insert(&mut self, name: impl Into<String>, param: Param) {
        self.0.insert(name.into(), param);
    }

    /// All parameters, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Param)> {
        self.0.iter().map(|(name, param)| (name.as_str(), param))
    }
}
