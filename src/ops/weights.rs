//! Parameters by name, as f32 in PyTorch's layouts. Every backend packs them into its own layout on first use.

use std::collections::HashMap;

use crate::error::{Error, Result};

/// One parameter: a dense row-major array of f32.
#[derive(Clone, Debug, PartialEq)]
pub struct Param {
    /// Extents, outermost first; convolutions are `[out, in, rows, columns]`.
    pub shape: Vec<usize>,
    /// Values in row-major order, as many as the product of `shape`.
    pub data: Vec<f32>,
}

/// The parameters of a model, by name.
///
/// ```
/// use tessera::ops::weights::{Param, Weights};
///
/// let mut weights = Weights::default();
/// weights.insert("layer.bias", Param { shape: vec![2], data: vec![0.5, -0.5] });
/// assert_eq!(weights.get("layer.bias", &[2])?.data, [0.5, -0.5]);
/// assert!(weights.get("layer.bias", &[3]).is_err());
/// # Ok::<(), tessera::error::Error>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct Weights(HashMap<String, Param>);

impl Weights {
    /// The parameter `name`, which must have the shape `shape`.
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

    /// All parameters, in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Param)> {
        self.0.iter().map(|(name, param)| (name.as_str(), param))
    }
}
