//! The models of a server.

use std::sync::Arc;

use crate::{
    error::{Error, Resource, Result},
    model::checkpoint::Checkpoint,
};

/// Models with distinct names, at least one; the first is the default. Clones share them.
#[derive(Clone, Debug)]
pub struct Models(Arc<[Arc<Checkpoint>]>);

impl Models {
    /// Creates the set.
    ///
    /// # Errors
    /// [`Kind::InvalidArgument`](crate::error::Kind) if it is empty or two models have the same name.
    pub fn new(models: Vec<Arc<Checkpoint>>) -> Result<Self> {
        if models.is_empty() {
            return Err(Error::missing("model", "at least one model"));
        }
        for (i, model) in models.iter().enumerate() {
            let name = &model.arch.name;
            if models[..i].iter().any(|other| other.arch.name == *name) {
                return Err(Error::invalid("model", name, "models of different names"));
            }
        }
        Ok(Self(models.into()))
    }

    /// The default model.
    pub fn first(&self) -> &Arc<Checkpoint> {
        &self.0[0]
    }

    /// All models, the default first.
    pub fn all(&self) -> &[Arc<Checkpoint>] {
        &self.0
    }

    /// The model called `name`.
    ///
    /// # Errors
    /// [`Kind::NotFound`](crate::error::Kind).
    pub fn named(&self, name: &str) -> Result<&Arc<Checkpoint>> {
        self.0
            .iter()
            .find(|model| model.arch.name == name)
            .ok_or_else(|| Error::not_found(Resource::Model, name))
    }

    /// The model with this SHA-256.
    pub(super) fn of(&self, sha256: &str) -> Option<&Arc<Checkpoint>> {
        self.0.iter().find(|model| model.sha256 == sha256)
    }

    /// Index of `model` in [`Models::all`].
    pub(super) fn index_of(&self, model: &Arc<Checkpoint>) -> usize {
        self.0.iter().position(|other| Arc::ptr_eq(other, model)).unwrap_or(0)
    }
}
