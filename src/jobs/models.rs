//! The models of a server.

use std::sync::Arc;

use crate::{
    error::{Error, Resource, Result},
    model::checkpoint::Checkpoint,
};

/// Most characters of a name.
const MAX_NAME: usize = 63;

/// Description of the accepted names.
const NAME: &str = "a name of at most 63 letters, digits, '-', '_' and '.' that begins with a letter or digit; \
     --model NAME=FILE sets it";

/// True if `name` can be the name of a model of a server.
pub fn is_model_name(name: &str) -> bool {
    name.len() <= MAX_NAME
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
}

/// A model and the name by which clients ask for it.
#[derive(Clone, Debug)]
struct Model {
    name: String,
    checkpoint: Arc<Checkpoint>,
}

/// Distinct models with distinct names, at least one; the first is the default. Clones share them.
#[derive(Clone, Debug)]
pub struct Models(Arc<[Model]>);

impl Models {
    /// Creates the set; each model has the name of its architecture.
    ///
    /// # Errors
    /// Those of [`Models::with_names`].
    pub fn new(models: Vec<Arc<Checkpoint>>) -> Result<Self> {
        let named = models.into_iter().map(|model| (model.arch.name.clone(), model));
        Self::with_names(named.collect())
    }

    /// Creates the set of models with these names.
    ///
    /// # Errors
    /// [`Kind::InvalidArgument`](crate::error::Kind) if it is empty, a name is not valid ([`is_model_name`]), or two models have
    /// the same name or are the same.
    pub fn with_names(models: Vec<(String, Arc<Checkpoint>)>) -> Result<Self> {
        if models.is_empty() {
            return Err(Error::missing("model", "at least one model"));
        }
        for (i, (name, model)) in models.iter().enumerate() {
            if !is_model_name(name) {
                return Err(Error::invalid("model", format!("{name:?}"), NAME));
            }
            let value = |what: &str| format!("{name:?}, {what}");
            for (other, known) in &models[..i] {
                if name == other {
                    let expected = "a name for each model; --model NAME=FILE sets it";
                    return Err(Error::invalid("model", value("the name of two models"), expected));
                }
                if model.sha256 == known.sha256 {
                    let value = value(&format!("the same file as {other:?}"));
                    return Err(Error::invalid("model", value, "each model once"));
                }
            }
        }
        Ok(Self(models.into_iter().map(|(name, checkpoint)| Model { name, checkpoint }).collect()))
    }

    /// The default model.
    pub fn first(&self) -> &Arc<Checkpoint> {
        &self.0[0].checkpoint
    }

    /// All models, the default first.
    pub fn all(&self) -> impl ExactSizeIterator<Item = &Arc<Checkpoint>> {
        self.0.iter().map(|model| &model.checkpoint)
    }

    /// The model called `name`.
    ///
    /// # Errors
    /// [`Kind::NotFound`](crate::error::Kind).
    pub fn named(&self, name: &str) -> Result<&Arc<Checkpoint>> {
        let found = self.0.iter().find(|model| model.name == name);
        found.map(|model| &model.checkpoint).ok_or_else(|| Error::not_found(Resource::Model, name))
    }

    /// The name of `model`; that of its architecture if it is none of these.
    pub fn name_of<'a>(&'a self, model: &'a Checkpoint) -> &'a str {
        let known = self.0.iter().find(|known| known.checkpoint.sha256 == model.sha256);
        known.map_or(&model.arch.name, |known| &known.name)
    }

    /// The model with this SHA-256.
    pub(super) fn of(&self, sha256: &str) -> Option<&Arc<Checkpoint>> {
        self.all().find(|model| model.sha256 == sha256)
    }

    /// Index of `model` in [`Models::all`].
    pub(super) fn index_of(&self, model: &Arc<Checkpoint>) -> usize {
        self.all().position(|other| Arc::ptr_eq(other, model)).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn model_names_are_valid_in_resource_names_and_addresses() {
        for name in ["scenery", "net-a", "pdm-2k", "A_1.5", &"x".repeat(MAX_NAME)] {
            assert!(is_model_name(name), "{name}");
        }
        for name in ["", ".", "..", "-a", "a/b", "a b", "a=b", "é", "a%", &"x".repeat(MAX_NAME + 1)]
        {
            assert!(!is_model_name(name), "{name}");
        }
    }
}
