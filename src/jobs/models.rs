//! The models that a server makes pictures with.

use std::sync::Arc;

use crate::{
    error::{Error, Resource, Result},
    model::checkpoint::Checkpoint,
};

/// Models of different names, at least one; the first is the default. Cloning shares them.
#[derive(Clone, Debug)]
pub struct Models(Arc<[Arc<Checkpoint>]>);

impl Models {
    /// A server's models.
    ///
    /// # Errors
    /// [`Kind::InvalidArgument`](crate::error::Kind) when there is none, or two have one name.
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

    /// The default.
    pub fn first(&self) -> &Arc<Checkpoint> {
        &self.0[0]
    }

    /// All of them, the default first.
    pub fn all(&self) -> &[Arc<Checkpoint>] {
        &self.0
    }

    /// The one called `name`.
    ///
    /// # Errors
    /// [`Kind::NotFound`](crate::error::Kind).
    pub fn named(&self, name: &str) -> Result<&Arc<Checkpoint>> {
        self.0
            .iter()
            .find(|model| model.arch.name == name)
            .ok_or_else(|| Error::not_found(Resource::Model, name))
    }

    /// The one with this SHA-256.
    pub(super) fn of(&self, sha256: &str) -> Option<&Arc<Checkpoint>> {
        self.0.iter().find(|model| model.sha256 == sha256)
    }

    /// The place of `model` among all.
    pub(super) fn place(&self, model: &Arc<Checkpoint>) -> usize {
        self.0.iter().position(|other| Arc::ptr_eq(other, model)).unwrap_or(0)
    }
}
